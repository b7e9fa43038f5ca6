from __future__ import annotations

from pathlib import Path

import pytest

from hellm_pyg import experiment
from tests.experiment.configs import SMALL, shop_config


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with both phase-1 runs."""
    folder = tmp_path_factory.mktemp('shop')
    for name, recipe in (('graph', 'pretrain_best'), ('seq', 'sasrec')):
        experiment.pretrain(shop_config(folder, recipe, *SMALL), folder / name)
    return folder
