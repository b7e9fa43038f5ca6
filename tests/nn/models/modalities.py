"""Data of two modalities with missing rows, and dense forms of its graphs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from hellm_pyg.data.loader import PairLoader
from hellm_pyg.datasets.fake import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import GraphRecommender, Popularity
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.nn.models.batches import pair_batch, train

NUM_USERS, NUM_ITEMS, K = 14, 11, 3
DIMS = {'text': 5, 'image': 4}  # not in the order of names
WITHOUT = {'image': [2, 7], 'text': [7, 9]}
BATCH = pair_batch([3, 5, 3, 0, 8], [1, 2, 4, 7, 0], [0, 9, 9, 1, 3])


def make_data() -> HeteroData:
    data = rec_data(NUM_USERS, NUM_ITEMS, seed=3, modalities=DIMS, max_length=7)
    for name, rows in WITHOUT.items():
        data['item'][f'x_{name}'][rows] = torch.nan
    return KNNHyperedges(K)(UserItemGraph()(LeaveOneOut()(data)))


DATA = make_data()


def scatter_parameters(model: torch.nn.Module, seed: int = 0) -> None:
    """Fills all parameters, such that each matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.5 * noise)


def features(name: str) -> Tensor:
    return DATA['item'][f'x_{name}'].double().nan_to_num(0.0)


def has(name: str) -> Tensor:
    out = torch.ones(NUM_ITEMS, dtype=torch.bool)
    out[WITHOUT[name]] = False
    return out


def interactions(data: HeteroData = DATA) -> Tensor:
    out = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.double)
    edge_index = data['user', 'interacts', 'item'].edge_index.as_tensor()
    out[edge_index[0], edge_index[1]] = 1
    return out


def bipartite(R: Tensor) -> Tensor:
    top = torch.cat([torch.zeros(len(R), len(R)).double(), R], dim=1)
    low = torch.cat([R.t(), torch.zeros(R.size(1), R.size(1)).double()], dim=1)
    return torch.cat([top, low])


def inverse(x: Tensor, power: float = 1.0) -> Tensor:
    return torch.where(x > 0, x.clamp(min=1e-30).pow(-power), 0.0)


def symmetric(A: Tensor) -> Tensor:
    """Normalised by row sums on both sides."""
    scale = inverse(A.sum(dim=1), 0.5)
    return scale[:, None] * A * scale


def lightgcn(A: Tensor, x: Tensor, num_layers: int) -> Tensor:
    layers = [x]
    for _ in range(num_layers):
        layers.append(A @ layers[-1])
    return torch.stack(layers).mean(dim=0)


def neighbors(name: str) -> Tensor:
    """Who the K most similar items are, 0 or 1."""
    out = torch.zeros(NUM_ITEMS, NUM_ITEMS, dtype=torch.double)
    x, known = features(name), has(name).nonzero().view(-1).tolist()
    for i in known:
        similar = {j: torch.cosine_similarity(x[i], x[j], dim=0).item() for j in known}
        for j in sorted(known, key=lambda j: -similar[j])[:K]:
            out[i, j] = 1
    return out


def cosines(x: Tensor) -> Tensor:
    norm = x.norm(dim=1)
    return x @ x.t() * inverse(norm)[:, None] * inverse(norm)


def assert_same_gradients(
    model: torch.nn.Module, out: Tensor, expected: Tensor, tolerance: float = 1e-5
) -> None:
    """The values are equal, the gradients too, and no parameter is dead."""
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(out, parameters, retain_graph=True)
    wanted = torch.autograd.grad(expected, parameters)
    for name, a, b in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=10 * tolerance, msg=lambda m, n=name: f'{n}: {m}'
        )
        assert bool((a != 0).any()), f'{name} is dead'


def planted() -> HeteroData:
    """Clustered data, a tenth of the features missing."""
    data = UserItemGraph()(LeaveOneOut()(FakeRecDataset()[0]))
    return KNNHyperedges(10)(data)


def assert_learns(
    model: GraphRecommender, data: HeteroData, epochs: int = 20, lr: float = 1e-2
) -> None:
    """Beats popularity clearly, on the graph with the validation items too."""
    floor = Popularity(data['user'].num_nodes, data['item'].num_nodes)
    floor.fit(data)
    loader = PairLoader(data, 256, sampling='interaction')
    for epoch in range(epochs):
        model.on_epoch_start(data)
        loader.set_epoch(epoch)
        loss = train(model, data, list(loader), 1, lr)
        assert loss == loss
    for split in ('val', 'test'):
        least = 4 * evaluate(floor, data, split).metrics['N@10']
        found = evaluate(model, data, split).metrics['N@10']
        assert found > least, (split, found, least)


def without_features(data: HeteroData, name: str) -> HeteroData:
    out = copy.copy(data)
    del out['item'][f'x_{name}']
    return out


def with_edges(data: HeteroData, edge_index: Tensor) -> HeteroData:
    """The data with other interactions and their graph."""
    out = copy.copy(data)
    out['user', 'interacts', 'item'].edge_index = EdgeIndex(
        edge_index, sparse_size=(NUM_USERS, NUM_ITEMS)
    )
    return UserItemGraph()(out)
