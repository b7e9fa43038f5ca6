"""Configurations of small runs on the shop of :mod:`tests.shop`."""

from __future__ import annotations

from pathlib import Path

from hellm_pyg.config import Config, load_config
from tests.shop import write_llm, write_shop

SMALL = ['model.embedding_dim=8', 'train.eval_every=1']


def shop_config(folder: Path, recipe: str, *overrides: str) -> Config:
    return load_config(recipe, [*write_shop(folder), *overrides])


def hellm_config(shop: Path, folder: Path, *overrides: str) -> Config:
    """Stage 2 on both runs of the shop, and a tiny language model in the folder."""
    return shop_config(
        shop,
        'finetune_best',
        f'llm.name={write_llm(folder / "llm")}',
        'llm.num_layers=null',
        f'llm.tables.graph={shop / "graph"}',
        f'llm.tables.seq={shop / "seq"}',
        *overrides,
    )
