"""Our layers inside an ordinary PyG model: which cluster does a user shop in?

    python examples/layers_in_gcn.py --epochs 30

Items pass through a GCN over their nearest neighbours and through a hypergraph
convolution over the users who share them; a user is the second-order pool of items.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCNConv, Linear

from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.nn import LightHypergraphConv, SecondOrderAggregation
from hellm_pyg.transforms import KNNHyperedges

parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=30)
parser.add_argument('--hidden', type=int, default=32)
parser.add_argument('--rank', type=int, default=8)
args = parser.parse_args()

torch.manual_seed(0)
num_clusters = 5
dataset = FakeRecDataset(num_users=400, num_items=150, num_clusters=num_clusters)
data = KNNHyperedges(k=5, modalities=('text',))(dataset[0])
x = data['item'].x_text.nan_to_num()  # a tenth of the items have no text
neighbors = data['item', 'member_of', 'text_hyperedge'].edge_index.as_tensor()
bought = data['user', 'interacts', 'item'].edge_index
shared = bought.flip(0)  # items are the nodes, users the hyperedges
user, item = bought.as_tensor()

cluster = torch.tensor(data['item'].table['cluster'])
votes = torch.zeros(data['user'].num_nodes, num_clusters)
votes.index_add_(0, user, F.one_hot(cluster[item], num_clusters).float())
label = votes.argmax(1)
train = torch.rand(label.numel()) < 0.1


class Net(torch.nn.Module):
    """GCN, hypergraph convolution, GCN, second-order pooling."""

    def __init__(self, in_channels: int, hidden: int, rank: int, num_classes: int):
        super().__init__()
        self.conv1 = GCNConv(in_channels, hidden)
        self.conv2 = LightHypergraphConv('hgnn')
        self.conv3 = GCNConv(hidden, hidden)
        self.pool = SecondOrderAggregation(hidden, rank)
        self.lin = Linear(self.pool.out_channels, num_classes)

    def forward(
        self,
        x: Tensor,
        neighbors: Tensor,
        shared: Tensor,
        item: Tensor,
        user: Tensor,
        num_users: int,
    ) -> Tensor:
        """Logits of all users, shape [U, num_classes]."""
        x = self.conv1(x, neighbors).relu()
        x = x + self.conv2(x, shared)
        x = self.conv3(x, neighbors).relu()
        out = self.pool(x[item], user, dim_size=num_users)
        return self.lin(F.dropout(out, p=0.2, training=self.training))


model = Net(x.size(1), args.hidden, args.rank, num_clusters)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=1e-4)
inputs = (x, neighbors, shared, item, user, label.numel())

for epoch in range(1, args.epochs + 1):
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(*inputs)[train], label[train])
    loss.backward()
    optimizer.step()

    if epoch % 5 == 0:
        model.eval()
        with torch.no_grad():
            hit = model(*inputs).argmax(1) == label
        seen, unseen = (hit[mask].float().mean() for mask in (train, ~train))
        print(f'{epoch:02d}: loss {loss:.3f}, train {seen:.3f}, test {unseen:.3f}')
