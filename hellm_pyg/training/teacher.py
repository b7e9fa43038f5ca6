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

    They read the items before a target as those of somebody unknown, without dropout,
    and are not trained further.

    Args:
        models: Name to recommender, whose scores are logits over all items; moved to
            the device.
        data: What they encode, once, on that device.
        weight: Share of a target's weight that is the teacher's.
        device: Where batches lie.

    Raises:
        ValueError: If there are no models, or one of them counts; and when it is asked,
            if a score is NaN or infinite.
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
        for name, model in models.items():
            if getattr(model, 'sampling', None) == 'none':
                raise ValueError(
                    f"'teachers' needs models that were trained (got {name!r}, "
                    f'{type(model).__name__}, whose scores are no logits): leave it out'
                )
        self.models: dict[str, Any] = dict(models)
        self.weight = weight
        self._num_items = int(data['item'].num_nodes)
        self._encoded: dict[str, Any] = {}
        for name, model in self.models.items():
            with inference(model.to(device)):
                self._encoded[name] = model.encode(data)

    def hashes(self) -> list[list[str]]:
        """Names of the models, and which weights they have."""
        models = self.models.items()
        return [[name, tensor_hash(trained_tensors(model))] for name, model in models]

    def __call__(self, batch: Any) -> SoftTargets:
        """Returns what it tells of the targets of a :class:`SequenceBatch`."""
        histories = batch.histories()
        every = torch.arange(batch.num_targets, device=batch.user.device)

        def probability(index: Tensor) -> Tensor:
            kept = torch.zeros_like(every, dtype=torch.bool)
            return self._mean(histories.rows(kept.index_fill_(0, index, True)))

        return SoftTargets(self.weight, every, probability)

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
    """Refuses a model that cannot learn from a teacher.

    Raises:
        ValueError: If its loss takes no :class:`~hellm_pyg.nn.SoftTargets`, or it
            learns anything but a softmax over all items.
    """
    got = type(model).__name__
    if 'soft' in inspect.signature(model.loss).parameters:
        wanted = {'sampling': 'sequences', 'objective': 'softmax', 'candidates': 'all'}
        found = {name: getattr(model, name, best) for name, best in wanted.items()}
        if found == wanted:
            return
        others = (
            f'{name}={found[name]!r}' for name in found if found[name] != wanted[name]
        )
        got += f' with {", ".join(others)}'
    raise ValueError(
        f"'distill' needs a model that learns a softmax over all items: SASRec with "
        f'loss=softmax, GRU4Rec or a language model, with candidates=all (got {got}); '
        f'set it to null, or choose another loss'
    )
