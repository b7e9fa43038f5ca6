"""All that a run needs to go on as if it had never stopped; no pickles."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hellm_pyg.checkpoint import (
    atomic_folder,
    check_names,
    load_json,
    load_tensors,
    recover_folder,
    save_json,
    save_tensors,
)
from hellm_pyg.config import (
    DistillConfig,
    EvalConfig,
    LLMConfig,
    SmoothingConfig,
    TrainConfig,
)

WEIGHTS, OPTIMIZER = 'weights.safetensors', 'optimizer.safetensors'
RANDOM, PROGRESS = 'random.json', 'progress.json'
# A setting that changes nothing but the memory that a validation needs.
FREE = 'eval.batch_size'
# Settings that say where something lies, and those that tell what it is.
CONTENT = {
    'llm.name': 'backbone',
    'llm.tables.': 'tables',
    'train.refit': 'refit',
    'train.distill.runs.': 'teachers',
}
# Sections that may have got another key since a state was written, whose default
# changes nothing.
SECTIONS = {
    'train': TrainConfig(),
    'train.distill': DistillConfig(),
    'eval': EvalConfig(),
    'llm': LLMConfig(),
    'llm.smoothing': SmoothingConfig(),
}


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: Epochs done, validation included.
        step: Steps done in the current epoch.
        total_steps: Steps done in all.
        loss: Sum of the target losses of the current epoch.
        targets: Number of targets that it sums.
        seconds: Time spent on the current epoch's steps.
        best: Best value of the selection metric.
        best_epoch: Its epoch, from 1.
        best_metrics: All metrics of that epoch.
        waited: Validations since.
        curve: One record an epoch.
        stopped: Why training ended, empty while it has not.
        position: Size of the log in bytes.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    targets: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ''
    position: int = 0


def _buffers(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """Persistent dense buffers: full name to owner and own name."""
    return {
        f'{prefix}.{name}' if prefix else name: (module, name)
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
        and buffer.layout == torch.strided
    }


def trained_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, and persistent buffers.

    Frozen parameters (a language model's) are left out: they never change.
    """
    tensors: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for name, (module, own) in _buffers(model).items():
        tensors[name] = module.get_buffer(own)
    return tensors


@torch.no_grad()
def load_trained(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str
) -> None:
    """Writes tensors of :func:`trained_tensors` back; buffers may change shape.

    Raises:
        ValueError: If names or the shapes of parameters differ.
    """
    own, buffers = trained_tensors(model), _buffers(model)
    check_names(tensors, own, what)
    for name, tensor in tensors.items():
        if tensor.shape == own[name].shape:
            own[name].copy_(tensor)
        elif name in buffers:
            module, short = buffers[name]
            setattr(module, short, tensor.to(own[name].device))
        else:
            raise ValueError(
                f"{what} does not fit: '{name}' needs to be of shape "
                f'{list(own[name].shape)} (got {list(tensor.shape)})'
            )


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f'{index}.{name}': value
        for index, values in optimizer.state_dict()['state'].items()
        for name, value in values.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition('.')
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': state, 'param_groups': groups})


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of Python, NumPy and torch, as plain values."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        'python': [version, list(words), gauss],
        'numpy': [name, keys.tolist(), *rest],  # type: ignore[union-attr]
        'torch': torch.get_rng_state().tolist(),
    }
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device).tolist()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts :func:`random_state` back."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state['torch'], dtype=torch.uint8))
    if device.type == 'cuda' and 'cuda' in state:
        cuda = torch.tensor(state['cuda'], dtype=torch.uint8)
        torch.cuda.set_rng_state(cuda, device)


def save_state(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    settings: Mapping[str, Any],
    generators: list[dict[str, Any]],
) -> None:
    """Writes the state of a run; an interrupted write leaves the former one."""
    with atomic_folder(folder) as temporary:
        save_tensors(temporary / WEIGHTS, trained_tensors(model))
        save_tensors(temporary / OPTIMIZER, _flatten(optimizer))
        save_json(temporary / RANDOM, generators)
        content = {'progress': asdict(progress), 'settings': settings}
        save_json(temporary / PROGRESS, content)


def read_progress(folder: Path, settings: Mapping[str, Any]) -> Progress | None:
    """How far the run in a folder has come; :obj:`None` if there is no state.

    Raises:
        ValueError: If the state belongs to other settings (names the difference), or
            the file is missing or damaged.
    """
    if not recover_folder(folder):
        return None
    with _or_start_over(folder):
        content = load_json(folder / PROGRESS, dict)
        try:
            found, former = Progress(**content['progress']), content['settings']
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"'{folder / PROGRESS}' is damaged or of another version: {error!r}"
            ) from error
    if differing := _differing(former, settings):
        raise ValueError(
            f"'{folder}' belongs to another run: {'; '.join(differing)}. Go on with "
            f'the former settings, choose another folder for this run, or start over '
            f"(remove '{folder.parent}', or call 'fit(fresh=True)')"
        )
    return found


def _differing(former: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What is another setting than it was, in words."""
    old, new = _dotted(former), _dotted(settings)
    sections = {key.rpartition('.')[0] for key in old}
    for key in set(new) - set(old):
        section, _, name = key.rpartition('.')
        if section in sections and section in SECTIONS:
            default = getattr(SECTIONS[section], name, None)
            old[key] = list(default) if isinstance(default, tuple) else default
    told = tuple(p for p, c in CONTENT.items() if c in former and c in settings)
    return [
        f'{key} was {old.get(key)!r} and is {new.get(key)!r}'
        for key in sorted({*old, *new} - {FREE})
        if old.get(key) != new.get(key)
        and not (key.startswith(told) and are_paths(old.get(key), new.get(key)))
    ]


def are_paths(*values: Any) -> bool:
    """Whether values say where something lies, as resolved paths do."""
    return all(isinstance(value, str) and os.path.isabs(value) for value in values)


def load_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Reads weights and optimiser; returns the generators of all processes.

    Raises:
        ValueError: If a file is missing, damaged or does not fit the model.
    """
    with _or_start_over(folder):
        load_trained(model, load_tensors(folder / WEIGHTS), f"'{folder / WEIGHTS}'")
        _unflatten(optimizer, load_tensors(folder / OPTIMIZER))
        return load_json(folder / RANDOM, list)


@contextmanager
def _or_start_over(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{error}; put the whole file back, or remove '{folder}' to start over"
        ) from error


def _dotted(value: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:  # empty it is not None
        plain = list(value) if isinstance(value, list | tuple) else value
        return {prefix: plain}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        found |= _dotted(entry, f'{prefix}.{key}' if prefix else str(key))
    return found
