"""Transforms that turn interactions into the graphs of the models.

Order matters: ``LeaveOneOut`` comes first, since ``UserItemGraph`` reads the edges it
leaves (and refuses data without it). ``KNNHyperedges`` reads item features alone and
may stand anywhere:

.. code-block:: python

    import torch_geometric.transforms as T

    T.Compose([LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=10)])
"""

from hellm_pyg.transforms.knn_hyperedges import KNNHyperedges
from hellm_pyg.transforms.leave_one_out import LeaveOneOut
from hellm_pyg.transforms.user_item_graph import UserItemGraph

__all__ = ['KNNHyperedges', 'LeaveOneOut', 'UserItemGraph']
