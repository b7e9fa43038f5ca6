"""Batches, loaders, negatives and the parts of a leave-one-out split."""

from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.data.loader import PairLoader, SequenceLoader
from hellm_pyg.data.negative import NegativeSampler
from hellm_pyg.data.split import (
    Histories,
    fold_in,
    history_edges,
    user_item_adjacency,
)

__all__ = [
    'Histories',
    'NegativeSampler',
    'PairBatch',
    'PairLoader',
    'SequenceBatch',
    'SequenceLoader',
    'fold_in',
    'history_edges',
    'user_item_adjacency',
]
