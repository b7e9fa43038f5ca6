from __future__ import annotations

from pathlib import Path

import pytest

from tests.shop import write_shop

from .running import hellm


@pytest.fixture(scope='session')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('shop')
    arguments = write_shop(folder)
    small = ['model.embedding_dim=8', 'train.eval_every=1']
    for name, recipe in (('graph', 'pretrain_best'), ('seq', 'sasrec')):
        hellm('pretrain', recipe, *arguments, *small, '--out', folder / name)
    return folder
