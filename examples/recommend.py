"""Recommends out of the folder that ``finetune.py`` has saved, in original ids.

    python examples/recommend.py --run runs/example --user user_007

Needs ``finetune.py`` to have run; a new user is just a history.
"""

import argparse
from pathlib import Path

import torch_geometric.transforms as T

from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.llm import LLMRecommender
from hellm_pyg.recommendation import recommend
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph

parser = argparse.ArgumentParser()
parser.add_argument('--run', type=Path, default=Path('runs/example'))
parser.add_argument('--user', default='user_007')
args = parser.parse_args()

transform = T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=5)])
dataset = FakeRecDataset(num_users=400, num_items=120, pre_transform=transform)
data, ids = dataset[0], dataset.ids

# The folder names its backbone, and is refused if the catalogue is another one.
folder = args.run / 'hellm' / 'saved'
model = LLMRecommender.from_pretrained(folder, fingerprint=ids.fingerprint)

print(f'{args.user}, who is known:')
for row in recommend(model, data, ids, users=[args.user], k=5):
    print(f'{row.rank}. {row.item} {row.title} ({row.score:.3f})')

history = ids.item_id([3, 14, 15])
print(f'Somebody new, who has taken {history}:')
for row in recommend(model, data, ids, histories=[history], k=5):
    print(f'{row.rank}. {row.item} {row.title} ({row.score:.3f})')
