"""Pre-trains HeLLMPre and SASRec on clustered synthetic data.

    python examples/pretrain.py --out runs/example

On files of your own, replace ``FakeRecDataset`` by ``InteractionFiles``.
"""

import argparse
from pathlib import Path
from typing import Any

import torch_geometric.transforms as T
from torch_geometric import seed_everything

from hellm_pyg.config import TrainConfig
from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.nn.models import HeLLMPre, Popularity, SASRec
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph

parser = argparse.ArgumentParser()
parser.add_argument('--out', type=Path, default=Path('runs/example'))
args = parser.parse_args()
seed_everything(2024)

# Users, items and modality hyperedges in one HeteroData, last items held out.
transform = T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=5)])
dataset = FakeRecDataset(num_users=400, num_items=120, pre_transform=transform)
data, ids = dataset[0], dataset.ids
print(data)

models: dict[str, Any] = {
    'hellm_pre': HeLLMPre(dataset[0]['user'].num_nodes, data['item'].num_nodes),
    'sasrec': SASRec(data['item'].num_nodes),
}
loaders: dict[str, Any] = {
    'hellm_pre': PairLoader(data, batch_size=256),
    'sasrec': SequenceLoader(data, 'train', batch_size=64, targets='all'),
}
for name, model in models.items():
    config = TrainConfig(epochs=20, lr=5e-3, patience=5)
    run_dir = args.out / name
    Trainer(model, data, loaders[name], config, run_dir, ids=ids).fit(fresh=True)

# The test items are read once, here.
floor = Popularity(data['user'].num_nodes, data['item'].num_nodes)
floor.on_epoch_start(data)
for name, model in {'popularity': floor, **models}.items():
    result = evaluate(model, data, 'test')
    print(f'{name}: {result.metrics} ({result.protocol})')
