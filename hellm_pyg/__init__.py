"""Multimodal hypergraph and language-model recommenders on PyTorch Geometric."""

__version__ = '0.1.0'
