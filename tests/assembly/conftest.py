from __future__ import annotations

import pytest
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data


@pytest.fixture
def data() -> HeteroData:
    transforms = [LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=3)]
    return Compose(transforms)(rec_data())
