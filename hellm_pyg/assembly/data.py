"""From the section ``data`` to split interactions and their graphs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose

from hellm_pyg.assembly.paths import resolve_data
from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.config import Config, DataConfig
from hellm_pyg.data.features import missing_rows
from hellm_pyg.data.split import INTERACTS, LATER, edge_tensor, fold_in
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.keys import in_words_of

if TYPE_CHECKING:
    from hellm_pyg.datasets import InteractionFiles

# Arguments that have another name in a recipe.
RENAMED = {name: f'data.knn_{name}' for name in ('direction', 'index')}
RENAMED |= {'k': 'data.knn', 'count': 'data.drop_last'}


def build_data(config: DataConfig) -> tuple[HeteroData, IdMap]:
    """Reads (or takes from the cache) the split interactions and their graphs.

    Beside the ``fingerprint`` of all that was read, ``split_fingerprint`` tells the
    split interactions alone: runs that agree in it may differ in features,
    neighbours and in what they are trained on.

    Raises:
        ValueError: If a file cannot be used.
    """
    from hellm_pyg.transforms import SampleUsers

    dataset = load_dataset(config)
    data = dataset[0]
    if config.sample is not None:
        with in_words_of(SampleUsers, 'data', share='data.sample'):
            data = SampleUsers(config.sample)(data)
    data.split_fingerprint = _split_fingerprint(data)
    return data, dataset.ids


def _split_fingerprint(data: HeteroData) -> str:
    parts = {name: data['user'][name] for name in ('val_item', 'test_item')}
    for edge_type in (INTERACTS, LATER):
        if edge_type in data.edge_types:
            parts[edge_type[1]] = edge_tensor(data[edge_type].edge_index)
    return tensor_hash(parts)


def training_data(config: Config, data: HeteroData) -> HeteroData:
    """Returns what a run trains on, with the held-out items that ``train.split`` adds.

    Args:
        config: The experiment.
        data: Its split interactions; left untouched.
    """
    match config.train.split:
        case 'train':
            return data
        case 'train+val':
            return fold_in(data, 'test')
        case 'all':
            return fold_in(data, 'all')


@in_words_of(DataConfig, 'data', **RENAMED)
def load_dataset(config: DataConfig) -> InteractionFiles:
    """Reads (or takes from the cache) the data set that :func:`build_data` returns.

    Raises:
        ValueError: If a file cannot be used.
    """
    from hellm_pyg.datasets import InteractionFiles
    from hellm_pyg.transforms import KNNHyperedges, UserItemGraph

    config = resolve_data(config)
    arguments = dataclasses.asdict(config)
    k, direction, index = (
        arguments.pop(name) for name in ('knn', 'knn_direction', 'knn_index')
    )
    for name in ('val_from', 'test_from', 'drop_last', 'sample'):
        del arguments[name]
    transforms: list[Any] = [*_split(config), UserItemGraph()]
    if config.features:
        modalities = tuple(config.features)
        transforms.append(KNNHyperedges(k, modalities, direction, index))
    return InteractionFiles(pre_transform=Compose(transforms), **arguments)


def _split(config: DataConfig) -> list[BaseTransform]:
    from hellm_pyg.transforms import DropLast, HoldOutByDate, LeaveOneOut

    if config.val_from is None and config.test_from is None:
        if config.drop_last == 0:
            return [LeaveOneOut()]
        return [DropLast(config.drop_last), LeaveOneOut()]
    if config.drop_last != 0:
        raise ValueError(
            f"'drop_last' belongs to leave-one-out (got {config.drop_last} beside a "
            f'hold-out by date): move the dates instead'
        )
    if config.val_from is None or config.test_from is None:
        raise ValueError(
            "'val_from' and 'test_from' make a hold-out by date together (got "
            f'{config.val_from!r} and {config.test_from!r})'
        )
    return [HoldOutByDate(config.val_from, config.test_from)]


def statistics(data: HeteroData) -> dict[str, object]:
    """Returns the numbers of a data card, before and after the split."""
    users, items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    train = data['user', 'interacts', 'item'].edge_index
    val, test = (int((data['user'][f'{s}_item'] >= 0).sum()) for s in ('val', 'test'))
    length = torch.bincount(edge_tensor(train)[0], minlength=users)
    for split in ('val', 'test'):
        length = length + (data['user'][f'{split}_item'] >= 0)
    left_out = 0
    if LATER in data.edge_types:
        later = edge_tensor(data[LATER].edge_index)[0]
        left_out = later.numel()
        length = length + torch.bincount(later, minlength=users)
    total = train.size(1) + val + test + left_out
    rows: dict[str, object] = {
        'name': data.name,
        'users': users,
        'items': items,
        'interactions': total,
        'training interactions': train.size(1),
        'training + test (as the article counts)': train.size(1) + test,
        'users with a target': test,
        **({'after the dates, in no split': left_out} if left_out else {}),
        'items without training': items - int(train[1].unique().numel()),
        'history, mean': f'{total / users:.2f}',
        'history, median': int(length.median()),
        'history, longest': int(length.max()),
        'sparsity': f'{100 * (1 - total / (users * items)):.4f} %',
    }
    for name, x in item_features(data).items():
        missing = int(missing_rows(x).sum())
        rows[f'{name} features'] = f'{x.size(1)} wide, {missing} items without'
    rows['fingerprint'] = data.fingerprint[:16]
    return rows


def item_features(data: HeteroData) -> dict[str, Tensor]:
    """Returns the features of the items by modality, each :math:`[I, F]`."""
    return {
        name.removeprefix('x_'): value
        for name, value in data['item'].items()
        if name.startswith('x_')
    }
