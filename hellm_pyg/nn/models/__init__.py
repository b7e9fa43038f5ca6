"""Recommenders behind one interface."""

from hellm_pyg.nn.models.base import GraphRecommender
from hellm_pyg.nn.models.floors import ItemKNN, Popularity
from hellm_pyg.nn.models.hellm_pre import HeLLMPre
from hellm_pyg.nn.models.lightgcn import LightGCN
from hellm_pyg.nn.models.sasrec import SASRec

__all__ = [
    'GraphRecommender',
    'HeLLMPre',
    'ItemKNN',
    'LightGCN',
    'Popularity',
    'SASRec',
]
