"""Fine-tunes a small LLaMA on the tables that ``pretrain.py`` has left.

    python examples/finetune.py --run runs/example
    python examples/finetune.py --run runs/example --llm SmolLM2-135M-Instruct

Without ``--llm`` the LLaMA is tiny and random: the example shows the way, not quality.
"""

import argparse
from pathlib import Path

import torch_geometric.transforms as T
from torch_geometric import seed_everything
from transformers import LlamaConfig, LlamaModel

from hellm_pyg.checkpoint import load_tensors
from hellm_pyg.config import TrainConfig
from hellm_pyg.data import SequenceLoader
from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.llm import Prompt, hellm, load_backbone, load_model
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph

parser = argparse.ArgumentParser()
parser.add_argument('--run', type=Path, default=Path('runs/example'))
parser.add_argument('--llm', default=None, help='hub name or folder; else a tiny one')
args = parser.parse_args()
seed_everything(2024)

transform = T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=5)])
dataset = FakeRecDataset(num_users=400, num_items=120, pre_transform=transform)
data = dataset[0]

if args.llm is None:
    folder = args.run / 'tiny-llama'
    LlamaModel(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder)
    llm = load_model(str(folder.absolute()))
    prompt = Prompt(before=tuple(range(1, 9)))
else:
    llm, tokenizer = load_backbone(args.llm)
    prompt = Prompt.from_tokenizer(tokenizer)

# Graph and sequence embeddings become tokens, the pooled graph becomes the prefix.
graph, seq = (
    load_tensors(args.run / name / 'embeddings.safetensors')['item']
    for name in ('hellm_pre', 'sasrec')
)
prefix = {'rank': 8, 'scale': 'sqrt_l2', 'gate': 'tanh', 'hidden_channels': 64}
model = hellm(llm, prompt, graph, seq, prefix, scope='causal', head='tied')

loader = SequenceLoader(data, 'train', batch_size=32, targets='all')
config = TrainConfig(epochs=10, lr=3e-3, optimizer='adamw', clip=1.0, patience=3)
run_dir = args.run / 'hellm'
Trainer(model, data, loader, config, run_dir, ids=dataset.ids).fit(fresh=True)

result = evaluate(model, data, 'test')
print(f'HeLLM: {result.metrics} ({result.protocol})')
model.save_pretrained(run_dir / 'saved', ids=dataset.ids, metrics=result.metrics)
