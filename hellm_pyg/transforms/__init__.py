"""Transforms that turn interactions into the graphs of the models.

Order matters: ``LeaveOneOut`` or ``HoldOutByDate`` comes first, since
``UserItemGraph`` reads the edges they leave (and refuses data without a split);
``DropLast`` may go before them.
``KNNHyperedges`` reads item features alone and may stand anywhere:

.. code-block:: python

    import torch_geometric.transforms as T

    T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=10)])
"""

from hellm_pyg.transforms.drop_last import DropLast
from hellm_pyg.transforms.hold_out_by_date import HoldOutByDate
from hellm_pyg.transforms.knn_hyperedges import KNNHyperedges
from hellm_pyg.transforms.leave_one_out import LeaveOneOut
from hellm_pyg.transforms.sample_users import SampleUsers
from hellm_pyg.transforms.user_item_graph import UserItemGraph

__all__ = [
    'DropLast',
    'HoldOutByDate',
    'KNNHyperedges',
    'LeaveOneOut',
    'SampleUsers',
    'UserItemGraph',
]
