"""Trained recommenders that teach another one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.evaluation.scoring import inference
from hellm_pyg.nn.soft_targets import SoftTargets
from hellm_pyg.training.state import trained_tensors

# What a model of a softmax over all items is, unless it says otherwise.
SOFTMAX = {'sampling': 'sequences', 'objective': 'softmax', 'candidates': 'all'}
KINDS = 'SASRec with loss=softmax, GRU4Rec or a language model, with candidates=all'


class Teacher:
    r"""The mean of what several recommenders predict after a history.

    .. math::
        p_{ti} = \frac{1}{M} \sum_{m=1}^{M} \frac{\exp s_m(t, i)}
        {\sum_j \exp s_m(t, j)}

    They read histories without dropout and are not trained further.

    Args:
        models: Name to recommender that has learned a softmax over all items; moved to
            the device.
        data: What they encode, once, on that device.
        weight: Share of a target's weight that is the teacher's.
        device: Where batches lie.

    Raises:
        ValueError: If there are no models, or one of them is of another kind; and when
            it is asked, if a model does not read what the batch has targets of, or a
            softmax of its scores is NaN.
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
            if other := _other_than_softmax(model):
                raise ValueError(
                    f"'teachers' needs models that have learned a softmax over all "
                    f'items: {KINDS} (got {name!r}, {other}); leave it out'
                )
        self.models: dict[str, Any] = dict(models)
        self.weight = weight
        self._encoded: dict[str, Any] = {}
        for name, model in self.models.items():
            with inference(model.to(device)):
                self._encoded[name] = model.encode(data)

    def __call__(self, batch: Any) -> SoftTargets:
        """Returns what it tells of the targets of a :class:`SequenceBatch`."""
        query = {}
        for name, model in self.models.items():
            with inference(model):
                query[name] = model.queries(self._encoded[name], batch)
            if query[name].size(0) != batch.num_targets:
                raise ValueError(
                    f"'teachers' needs models that predict all {batch.num_targets} "
                    f'targets of a batch (got {name!r}, which predicts '
                    f'{query[name].size(0)}): one that reads as long histories, and '
                    f"not with scope='user' where targets='all'"
                )

        def probability(index: Tensor) -> Tensor:
            return self._mean({name: x[index] for name, x in query.items()})

        every = torch.arange(batch.num_targets, device=batch.user.device)
        return SoftTargets(self.weight, every, probability)

    def _mean(self, query: Mapping[str, Tensor]) -> Tensor:
        total: Tensor | None = None
        for name, model in self.models.items():
            with inference(model):
                score = model.score_queries(self._encoded[name], query[name]).float()
            share = score.softmax(dim=1)
            if not bool(share.sum().isfinite()):
                raise ValueError(
                    f"'teachers' needs finite scores (got NaN or infinite ones of "
                    f'{name!r}): train it anew, or leave it out'
                )
            total = share if total is None else total.add_(share)
        assert total is not None
        return total.div_(len(self.models))


def hashes(models: Mapping[str, torch.nn.Module]) -> list[list[str]]:
    """Names of models, and which weights they have."""
    return [
        [name, tensor_hash(trained_tensors(model))] for name, model in models.items()
    ]


def check_student(model: Any) -> None:
    """Refuses a model that cannot learn from a teacher.

    Raises:
        ValueError: If it learns anything but a softmax over all items, or its loss has
            no argument ``soft``.
    """
    other = _other_than_softmax(model)
    if other is None and 'soft' not in inspect.signature(model.loss).parameters:
        other = f"{type(model).__name__}, whose loss takes no 'soft'"
    if other is not None:
        raise ValueError(
            f"'distill' needs a model that learns a softmax over all items: {KINDS} "
            f'(got {other}); set it to null, or choose another loss'
        )


def _other_than_softmax(model: Any) -> str | None:
    """What a model is that learns anything else."""
    name = type(model).__name__
    if not hasattr(model, 'queries'):
        return name
    found = {key: getattr(model, key, value) for key, value in SOFTMAX.items()}
    differs = [f'{key}={found[key]!r}' for key in found if found[key] != SOFTMAX[key]]
    return f'{name} with {", ".join(differs)}' if differs else None
