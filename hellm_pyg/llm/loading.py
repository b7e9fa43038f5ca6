"""Frozen models of strangers: loaded whole or refused with a reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import logging

from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.precision import default_device

# What a configuration says beside the computation.
VOLATILE = {'_name_or_path', 'architectures', 'dtype', 'transformers_version'}


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silences the report of the weights that a file has and a model has not."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def explained(argument: str, name: str, presets: tuple[str, ...]) -> Iterator[None]:
    """Turns the many errors of a model that cannot be loaded into one.

    Raises:
        ValueError: Names the argument, what was given and what failed.
    """
    try:
        with without_load_report():
            yield
    except Exception as error:  # what is missing or damaged fails in many ways
        reason = ' '.join(str(error).split()) or repr(error)
        raise ValueError(
            f"'{argument}' needs {', '.join(map(repr, presets))}, a folder with a "
            f"model, or a name that the hub resolves (got '{name}'): {reason}"
        ) from error


def whole_name(name: str) -> str:
    """A folder by its whole path, which is the same from everywhere; else the name."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def load_frozen(
    model_class: Any, source: str, config: PretrainedConfig | None = None
) -> tuple[Any, str]:
    """Loads a model for inference, in fp32, with all the weights that it uses.

    Args:
        model_class: A model class or an automatic one.
        source: Hub name or folder.
        config: Configuration in place of the model's own.

    Returns:
        The model, and the SHA-256 of its weights.

    Raises:
        ValueError: If weights are missing, which would be random otherwise; the
            pooler that some checkpoints lack is not used.
    """
    model, report = model_class.from_pretrained(
        source,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        **({} if config is None else {'config': config}),
    )
    random = set(report['missing_keys'])
    missing = sorted(name for name in random if 'pooler' not in name)
    if missing:
        raise ValueError(
            f'it lacks {len(missing)} of the weights that its configuration asks for, '
            f'{missing[0]!r} among them'
        )
    weights = {k: v for k, v in model.state_dict().items() if k not in random}
    return model.eval().requires_grad_(False), tensor_hash(weights)


def config_hash(*parts: dict[str, Any]) -> str:
    """SHA-256 of the settings that decide what a model computes."""
    kept = [{k: v for k, v in part.items() if k not in VOLATILE} for part in parts]
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_finite(x: Tensor, name: str, precision: str) -> None:
    """Refuses vectors of an encoder that are not finite."""
    if not x.isfinite().all():
        raise ValueError(
            f"'encoder' gives NaN or Inf (got '{name}' with precision '{precision}'); "
            "try precision='fp32', or download it again"
        )


def usable_device(device: str | None) -> str:
    """The device given, or :func:`~hellm_pyg.precision.default_device`.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        return default_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"'device' needs to be one that is there, as 'cpu' is (got {device!r}): "
            f'{reason}'
        ) from None
    return device
