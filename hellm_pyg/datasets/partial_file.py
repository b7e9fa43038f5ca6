"""A file on its way, which survives the process and is written by one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


class PartialFile:
    """What has arrived of a file, under a hidden name beside it, and from where.

    Args:
        path: The hidden name.
        file: The open file.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.notes = path.with_name(path.name + '.json')

    @classmethod
    @contextmanager
    def locked(cls, path: Path) -> Iterator[PartialFile]:
        """The part of a file, which only one process holds at a time."""
        name = path.with_name(f'.{path.name}.part')
        with _lock(name) as file:
            part = cls(name, file)
            try:
                yield part
            finally:
                if path.exists() or part.size == 0:
                    part.notes.unlink(missing_ok=True)
                    with suppress(OSError):  # Windows keeps open files
                        name.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Number of bytes that have arrived."""
        return os.fstat(self.file.fileno()).st_size

    @property
    def source(self) -> dict[str, Any]:
        """Address, validator and total size that the content belongs to."""
        try:
            source = json.loads(self.notes.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        return source if isinstance(source, dict) else {}

    def begin(self, source: dict[str, Any]) -> None:
        """Starts anew, empty."""
        self.file.truncate(0)
        self.notes.write_text(json.dumps(source), encoding='utf-8')

    def finish(self, path: Path) -> None:
        """Gives the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if os.name == 'nt':  # which does not rename open files
            self.file.close()
        os.replace(self.path, path)


@contextmanager
def _lock(name: Path) -> Iterator[BinaryIO]:
    """A file open for appending, which only one process holds at a time."""
    while True:
        with name.open('ab') as file:
            with suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it may have renamed or deleted it meanwhile.
            if name.exists() and os.path.samestat(name.stat(), os.fstat(file.fileno())):
                yield file
                return
