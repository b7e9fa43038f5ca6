"""Layers and losses for any PyG model; the recommenders are in ``nn.models``."""

from hellm_pyg.nn.aggr import SecondOrderAggregation
from hellm_pyg.nn.conv import LightHypergraphConv
from hellm_pyg.nn.loss import ContrastiveLoss
from hellm_pyg.nn.smoothing import NeighborSmoothing
from hellm_pyg.nn.soft_targets import SoftTargets

__all__ = [
    'ContrastiveLoss',
    'LightHypergraphConv',
    'NeighborSmoothing',
    'SecondOrderAggregation',
    'SoftTargets',
]
