"""Several processes that work as one: started by a launcher, summed by hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor


def make_accelerator() -> Accelerator:
    """Processes and devices as ``accelerate launch`` (or ``torchrun``) says.

    Raises:
        ValueError: If a launcher has started several processes that would not know
            of each other.
    """
    # The loss sets its own autocast. Apple's GPUs have no double precision, in which
    # losses and metrics are summed.
    only_cpu = torch.backends.mps.is_available()
    accelerator = Accelerator(mixed_precision='no', cpu=only_cpu)
    launched = int(os.environ.get('WORLD_SIZE', '1'))
    if 'LOCAL_RANK' in os.environ and accelerator.num_processes != launched:
        raise ValueError(
            f"the launcher's 'WORLD_SIZE' needs to be the number of processes that "
            f'find an accelerator each, {accelerator.num_processes} (got {launched}): '
            f'to share the work of the CPU, set ACCELERATE_USE_CPU=true'
        )
    return accelerator


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """Lets the first process through before the others, also if it fails.

    What it leaves on the disk, the others find; an error that all of them meet,
    all of them raise.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Gives all processes the values of the first one."""
    for tensor in tensors:
        value = tensor.contiguous()
        torch.distributed.broadcast(value, 0)
        tensor.copy_(value)


@torch.no_grad()
def sum_gradients(parameters: Sequence[Tensor], used: Sequence[bool]) -> None:
    """Sums gradients over the processes, in place.

    Unlike :class:`torch.nn.parallel.DistributedDataParallel` this is one exchange
    a step whatever number of batches a process has (it may have none), and a
    parameter may take part in some of the batches only. One that takes part in none
    keeps no gradient, and the optimiser passes it over, as in a single process.

    Args:
        parameters: The parameters, in the same order in all processes.
        used: Whether each of them has a gradient in any process.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for parameter, anywhere in zip(parameters, used, strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in kinds.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
