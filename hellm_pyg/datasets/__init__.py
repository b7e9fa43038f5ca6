"""Data sets as graphs, with the maps between original and internal ids."""

from hellm_pyg.datasets.amazon import AmazonReviews
from hellm_pyg.datasets.fake import FakeRecDataset
from hellm_pyg.datasets.ids import IdMap, UnknownIdError
from hellm_pyg.datasets.interactions import InteractionFiles

__all__ = [
    'AmazonReviews',
    'FakeRecDataset',
    'IdMap',
    'InteractionFiles',
    'UnknownIdError',
]
