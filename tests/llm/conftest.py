from __future__ import annotations

import pytest

from tests.llm.folders import IDS
from tests.llm.tiny import recommender


@pytest.fixture
def saved(tmp_path):
    recommender(prefix={}).save_pretrained(tmp_path / 'saved', IDS)
    return tmp_path / 'saved'
