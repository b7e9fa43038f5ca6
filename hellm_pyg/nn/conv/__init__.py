"""Graph convolutions."""

from hellm_pyg.nn.conv.light_hypergraph_conv import LightHypergraphConv

__all__ = ['LightHypergraphConv']
