"""Configurations of small runs on the shop of :mod:`tests.shop`."""

from __future__ import annotations

from pathlib import Path

from hellm_pyg.config import Config, load_config
from tests.shop import write_shop

SMALL = ['model.embedding_dim=8', 'train.eval_every=1']


def shop_config(folder: Path, recipe: str, *overrides: str) -> Config:
    return load_config(recipe, [*write_shop(folder), *overrides])
