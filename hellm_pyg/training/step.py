"""One step of the optimiser over a window of batches and processes."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.config import TrainConfig
from hellm_pyg.data.batch import PairBatch, SequenceBatch
from hellm_pyg.evaluation import Recommender
from hellm_pyg.precision import resolve_precision
from hellm_pyg.training.processes import share, sum_gradients
from hellm_pyg.training.schedule import build_optimizer
from hellm_pyg.training.state import trained_tensors
from hellm_pyg.training.teacher import Teacher

Batch = PairBatch | SequenceBatch


class Trainable(Recommender, typing.Protocol):
    """What can be trained: a module that also has a loss."""

    def loss(self, data: HeteroData, batch: Any) -> Tensor:
        """Returns the loss, a mean over ``batch.num_targets``.

        What has a teacher also gets :class:`~hellm_pyg.nn.SoftTargets` as ``soft``.
        """

    def on_epoch_start(self, data: HeteroData) -> None:
        """Called before every epoch, with the same random numbers in all processes.

        What is computed here from weights belongs into persistent buffers, which a
        resumed run reads back.
        """


class Gradient(NamedTuple):
    """What a backward pass found.

    Args:
        loss: Mean loss of all targets.
        norm: Norm of its gradient.
        targets: Number of targets.
    """

    loss: float
    norm: Tensor
    targets: float


class Stepper:
    r"""Gradients of a window of batches, as if these were one batch.

    With batches :math:`b` of :math:`n_b` targets and mean loss :math:`\ell_b`, over
    all processes, the gradient is that of

    .. math::
        \frac{\sum_b n_b \ell_b}{\sum_b n_b}.

    Args:
        model: The model; moved to the accelerator's device.
        data: The data that its loss reads, on that device.
        config: Optimisation.
        accelerator: Processes and devices.
        teacher: Whose predictions the loss learns from, too.

    Raises:
        ValueError: If the model lacks a method or has nothing to train, or cannot
            recompute activations as asked.
    """

    def __init__(
        self,
        model: Any,
        data: HeteroData,
        config: TrainConfig,
        accelerator: Accelerator,
        teacher: Teacher | None = None,
    ) -> None:
        _check(model)
        if config.activation_checkpointing:
            _checkpoint_activations(model)
        self.accelerator = accelerator
        self.clip = config.clip
        self._model = model.to(accelerator.device)
        self._data = data
        self._teacher = teacher
        self.precision = resolve_precision(config.precision, str(accelerator.device))
        self.optimizer = build_optimizer(model, config)
        self.trained = [p for g in self.optimizer.param_groups for p in g['params']]
        if self.processes > 1:
            share(trained_tensors(model).values())

    @property
    def processes(self) -> int:
        """Number of processes that share the batches."""
        return self.accelerator.num_processes

    def sum(self, *values: float) -> list[float]:
        """Sums numbers over all processes."""
        if self.processes == 1:
            return list(values)
        device = self.accelerator.device
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def backward(self, window: Sequence[Batch]) -> Gradient:
        """Sets the gradients.

        Args:
            window: This process's batches of the step; empty where only other
                processes have batches left.

        Raises:
            ValueError: If the window of no process has a target.
        """
        (targets,) = self.sum(float(sum(batch.num_targets for batch in window)))
        if targets == 0:
            raise ValueError(
                f"'loader' needs to give batches with targets (got {len(window)} "
                f'without any)'
            )
        self.optimizer.zero_grad()
        loss = 0.0
        for batch in window:
            value = self._loss(batch.to(self.accelerator.device))
            value = value * (batch.num_targets / targets)
            value.backward()
            loss += value.item()
        own = [float(p.grad is not None) for p in self.trained]
        loss, *used = self.sum(loss, *own)
        if self.processes > 1:
            sum_gradients(self.trained, [count > 0 for count in used])
        gradients = [p.grad for p in self.trained if p.grad is not None]
        return Gradient(loss, torch.nn.utils.get_total_norm(gradients), targets)

    def _loss(self, batch: Batch) -> Tensor:
        device = self.accelerator.device.type
        more = {} if self._teacher is None else {'soft': self._teacher(batch)}
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == 'bf16'):
            loss = self._model.loss(self._data, batch, **more)
        return loss.float()

    def update(self, rate: float, norm: Tensor) -> None:
        """Clips gradients of that norm and moves the parameters."""
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.clip, norm)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.optimizer.step()


def _check(model: Any) -> None:
    names = ('encode', 'score', 'loss', 'on_epoch_start')
    missing = [name for name in names if not callable(getattr(model, name, None))]
    if missing or not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"'model' needs to be a module with the methods {', '.join(names)} (got "
            f'{type(model).__name__} without {", ".join(missing) or "being a module"})'
        )


def _checkpoint_activations(model: Any) -> None:
    if not hasattr(model, 'enable_activation_checkpointing'):
        raise ValueError(
            f"'activation_checkpointing' needs a model that can recompute activations "
            f'(got {type(model).__name__}): set it to false'
        )
    model.enable_activation_checkpointing()
