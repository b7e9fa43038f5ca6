"""Recommenders behind one interface."""

from hellm_pyg.nn.models.base import GraphRecommender
from hellm_pyg.nn.models.bm3 import BM3
from hellm_pyg.nn.models.ensemble import Ensemble
from hellm_pyg.nn.models.floors import ItemKNN, Popularity
from hellm_pyg.nn.models.freedom import FREEDOM
from hellm_pyg.nn.models.grcn import GRCN
from hellm_pyg.nn.models.gru4rec import GRU4Rec
from hellm_pyg.nn.models.hellm_pre import HeLLMPre
from hellm_pyg.nn.models.lattice import LATTICE
from hellm_pyg.nn.models.lightgcn import LightGCN
from hellm_pyg.nn.models.sasrec import SASRec
from hellm_pyg.nn.models.sequence import SequenceRecommender
from hellm_pyg.nn.models.slmrec import SLMRec
from hellm_pyg.nn.models.vbpr import VBPR

__all__ = [
    'BM3',
    'FREEDOM',
    'GRCN',
    'LATTICE',
    'VBPR',
    'Ensemble',
    'GRU4Rec',
    'GraphRecommender',
    'HeLLMPre',
    'ItemKNN',
    'LightGCN',
    'Popularity',
    'SASRec',
    'SLMRec',
    'SequenceRecommender',
]
