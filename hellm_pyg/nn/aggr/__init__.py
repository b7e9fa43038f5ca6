"""Aggregations."""

from hellm_pyg.nn.aggr.second_order import SecondOrderAggregation

__all__ = ['SecondOrderAggregation']
