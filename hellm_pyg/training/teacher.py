"""Trained recommenders that teach another one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.evaluation.scoring import inference, score_all
from hellm_pyg.nn.soft_targets import SoftTargets
from hellm_pyg.training.state import trained_tensors


class Teacher:
    r"""The mean of what several recommenders predict after a history.

    .. math::
        p_{ti} = \frac{1}{M} \sum_{m=1}^{M} \frac{\exp s_m(t, i)}
        {\sum_j \exp s_m(t, j)}

    They read a target's history as they do at inference, without dropout, and are not
    trained further.

    Args:
        models: Name to recommender, whose scores are logits over all items; moved to
            the device.
        data: What they encode, once, on that device.
        weight: Share of a target's weight that is the teacher's.
        device: Where batches lie.

    Raises:
        ValueError: If there are no models, or a score is NaN or infinite.
    """

    def __init__(
        self,
        models: Mapping[str, torch.nn.Module],
        data: HeteroData,
        weight: float,
        device: torch.device,
    ) -> None:
        if not models:
            raise ValueError("'teachers' needs a recommender at least (got none)")
        self.models: dict[str, Any] = dict(models)
        self.weight = weight
        self._num_items = int(data['item'].num_nodes)
        self._encoded: dict[str, Any] = {}
        for name, model in self.models.items():
            with inference(model.to(device)):
                self._encoded[name] = model.encode(data)

    def hashes(self) -> dict[str, str]:
        """Tells by name which weights they have."""
        models = self.models.items()
        return {name: tensor_hash(trained_tensors(model)) for name, model in models}

    def __call__(self, batch: SequenceBatch) -> SoftTargets:
        """Returns what it tells of the targets of a batch."""
        index = torch.arange(batch.num_targets, device=batch.user.device)

        def probability(index: Tensor) -> Tensor:
            kept = torch.zeros(
                batch.num_targets, dtype=torch.bool, device=index.device
            ).index_fill_(0, index, True)
            return self._mean(batch.histories(kept))

        return SoftTargets(self.weight, index, probability)

    def _mean(self, histories: SequenceBatch) -> Tensor:
        total: Tensor | None = None
        for name, model in self.models.items():
            with inference(model):
                score = score_all(
                    model, self._encoded[name], histories, self._num_items
                )
            if not bool(score.isfinite().all()):
                raise ValueError(
                    f"'teachers' needs finite scores (got NaN or infinite ones of "
                    f'{name!r}): train it anew, or leave it out'
                )
            share = score.softmax(dim=1).div_(len(self.models))
            total = share if total is None else total.add_(share)
        assert total is not None
        return total


def check_student(model: Any) -> None:
    """Refuses a model whose loss cannot learn from a teacher.

    Raises:
        ValueError: If its loss takes no :class:`~hellm_pyg.nn.SoftTargets`.
    """
    if 'soft' not in inspect.signature(model.loss).parameters:
        raise ValueError(
            f"'distill' needs a model that learns a softmax over all items, SASRec, "
            f'GRU4Rec or a language model (got {type(model).__name__}): set it to null'
        )
