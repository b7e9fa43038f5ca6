"""Recommenders for what saves and restores them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm import LLMRecommender
from hellm_pyg.llm.backbone import load_model
from tests.llm.tiny import NUM_ITEMS, batch_of, recommender, tiny_llm

BATCH = batch_of([1, 2, 3], [4], [])
IDS = IdMap(['ann', 'bob'], list(range(100, 100 + NUM_ITEMS)))
METRICS = {
    'protocol': {'history': 'train+val', 'mask': 'seen'},
    'test': {'R@10': 0.12345678, 'N@10': 0.05},
}


def stored(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The tiny backbone as read from a folder, as fine-tuning gets it."""
    tiny_llm(dtype=dtype).save_pretrained(folder)
    return load_model(str(folder), dtype=dtype)


def trained(folder: Path, dtype: torch.dtype = torch.float32) -> LLMRecommender:
    """A recommender whose backbone is another one than it started from."""
    llm = stored(folder, dtype)
    model = recommender(prefix={}, lora=None, train_backbone=True, llm=llm)
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def scores(model: LLMRecommender) -> torch.Tensor:
    return model.score(model.encode(), BATCH)


def load(folder: Path, **kwargs) -> LLMRecommender:
    return LLMRecommender.from_pretrained(folder, tiny_llm(), **kwargs)
