"""Full ranking under a named protocol, by comparison."""

from hellm_pyg.evaluation.lists import iter_rank, rank
from hellm_pyg.evaluation.metrics import (
    beyond_accuracy,
    mrr,
    ndcg,
    recall,
    summarize,
    target_rank,
    top_k,
)
from hellm_pyg.evaluation.new_items import NeighborScores
from hellm_pyg.evaluation.protocol import HEADLINE, Evaluation, Protocol, Recommender
from hellm_pyg.evaluation.ranking import evaluate, evaluate_protocols
from hellm_pyg.evaluation.scoring import inference
from hellm_pyg.evaluation.weights import Choice, choose_weights

__all__ = [
    'HEADLINE',
    'Choice',
    'Evaluation',
    'NeighborScores',
    'Protocol',
    'Recommender',
    'beyond_accuracy',
    'choose_weights',
    'evaluate',
    'evaluate_protocols',
    'inference',
    'iter_rank',
    'mrr',
    'ndcg',
    'rank',
    'recall',
    'summarize',
    'target_rank',
    'top_k',
]
