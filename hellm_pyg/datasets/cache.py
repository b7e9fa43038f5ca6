"""Processed folders named by what they were made of, complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from hellm_pyg.checkpoint import is_alive, tensor_hash
from hellm_pyg.datasets.frames import Frame

SECONDS_OF_A_DAY = 86_400


def content_key(files: Sequence[Path | Frame], arguments: Mapping[str, Any]) -> str:
    """SHA-256 of the contents of files and of arguments.

    Args:
        files: Files, whose folders have no part in the key, and frames.
        arguments: Name to plain value or transform.
    """
    described = {name: _describe(value) for name, value in arguments.items()}
    text = json.dumps([list(map(content_hash, files)), described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(source: Path | Frame) -> str:
    """SHA-256 of the contents of a file or a frame."""
    if isinstance(source, Frame):
        return source.sha256
    with source.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def whole_folder(final: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to write in, which takes its final name on success only.

    If another process has meanwhile written the final folder, that one stays.

    Args:
        final: The final name; what lies there with a file missing is replaced.
        names: Names of the files that make the folder complete.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for stale in final.parent.glob('.tmp-*'):
        with contextlib.suppress(FileNotFoundError):  # another has just renamed it
            if _is_abandoned(stale):
                shutil.rmtree(stale, ignore_errors=True)
    folder = final.parent / f'.tmp-{os.getpid()}-{uuid4().hex}'
    folder.mkdir()
    try:
        yield folder
        if final.exists() and not all((final / name).exists() for name in names):
            shutil.rmtree(final)
        try:
            os.rename(folder, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether a killed process left a folder; a young one may be of another machine."""
    pid = folder.name.split('-')[1]
    old = time.time() - folder.stat().st_mtime > SECONDS_OF_A_DAY
    return old and not (pid.isdecimal() and is_alive(int(pid)))


def _describe(value: Any, within: tuple[int, ...] = ()) -> str:
    """A text that tells transforms with other parameters apart, in any process."""
    if id(value) in within:  # a function that calls itself, an object that holds itself
        return '...'

    def inner(part: Any) -> str:
        return _describe(part, (*within, id(value)))

    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(inner, value))}]'
    if isinstance(value, (set, frozenset)):
        return inner(sorted(map(inner, value)))
    if isinstance(value, Mapping):
        return f'{{{", ".join(f"{k}: {inner(v)}" for k, v in value.items())}}}'
    if isinstance(value, Tensor):
        return tensor_hash(_dense_parts(value))
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return inner(value.tolist())
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return f'{value.dtype}{value.shape}{digest}'
    if isinstance(value, CodeType):
        return inner((value.co_code, value.co_consts, value.co_names))
    if isinstance(value, ModuleType):
        return value.__name__
    if not isinstance(value, type) and hasattr(value, 'cache_content'):
        return f'{type(value).__name__}{inner(value.cache_content())}'
    attributes = dict(getattr(value, '__dict__', {}))
    if isinstance(value, FunctionType):  # two lambdas differ in what is not in a repr
        attributes['code'] = value.__code__
        attributes['defaults'] = value.__defaults__, value.__kwdefaults__
        attributes['closure'] = _closure(value)
    text = re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))
    return f'{text}{inner(attributes)}' if attributes else text


def _closure(function: FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            contents.append(cell.cell_contents)
    return contents


def _dense_parts(value: Tensor) -> dict[str, Tensor]:
    if value.layout == torch.strided:
        return {'values': value}
    sparse = value.detach().to_sparse_coo().coalesce()
    shape = torch.tensor(sparse.shape)
    return {'shape': shape, 'indices': sparse.indices(), 'values': sparse.values()}
