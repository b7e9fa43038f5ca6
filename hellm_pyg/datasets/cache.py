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
from types import FunctionType
from typing import Any
from uuid import uuid4

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
        # What a killed process left; a younger folder may be another's work.
        if time.time() - stale.stat().st_mtime > SECONDS_OF_A_DAY:
            shutil.rmtree(stale, ignore_errors=True)
    folder = final.parent / f'.tmp-{uuid4().hex}'
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


def _describe(value: Any) -> str:
    """A text that tells transforms with other parameters apart, in any process."""
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(_describe, value))}]'
    if isinstance(value, (set, frozenset)):
        return _describe(sorted(map(_describe, value)))
    if isinstance(value, Mapping):
        return f'{{{", ".join(f"{k}: {_describe(v)}" for k, v in value.items())}}}'
    attributes = dict(getattr(value, '__dict__', {}))
    if isinstance(value, FunctionType):  # two lambdas differ in their code alone
        code = value.__code__
        attributes['code'] = (code.co_code, code.co_consts, code.co_names)
    text = re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))
    return f'{text}{_describe(attributes)}' if attributes else text
