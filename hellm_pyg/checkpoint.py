"""Files that are either whole or not there: safetensors, JSON, folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

# Another machine, which a folder may be shared with, has other processes.
HOST = re.sub(r'\W', '-', socket.gethostname())
_writing: set[str] = set()  # names of what this process is writing now

Shape = Tensor | tuple[int, ...]


def _sync(path: Path) -> None:
    """Waits until a file's content or a folder's entries are on the disk."""
    flags = os.O_RDONLY | getattr(os, 'O_DIRECTORY', 0) * path.is_dir()
    if os.name == 'nt':  # Windows neither syncs folders nor read-only files
        return
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside a path that no other writer has."""
    name = f'.{path.name}.{HOST}.{os.getpid()}.{token_hex(4)}.tmp'
    _writing.add(name)
    try:
        yield path.with_name(name)
    finally:
        _writing.discard(name)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def atomic(path: str | Path, sweep: bool = True) -> Iterator[Path]:
    """Writes a file under another name and renames it once it is whole.

    If the block or the disk fails, a file that was there before stays as it was.

    Args:
        path: The file; missing parent folders are made.
        sweep: Whether to remove first what killed processes have left of the file.
            That lists the folder: where many files are written to one, call
            :func:`discard_abandoned` once instead.

    Yields:
        The name to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if sweep:
        discard_abandoned(path.parent, path.name)
    with _temporary(path) as temporary:
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException as error:
            _discard(temporary)
            if isinstance(error, OSError) and error.filename in (None, str(temporary)):
                error.filename = str(path)  # a full disk names no file by itself
            raise
    _sync(path.parent)


def _previous(path: Path) -> Path:
    return path.with_name(f'.{path.name}.old')


def recover_folder(path: str | Path) -> bool:
    """Puts a folder back that a killed :func:`atomic_folder` had set aside.

    Returns:
        Whether the folder is there.
    """
    path = Path(path)
    if not path.exists() and _previous(path).is_dir():
        os.rename(_previous(path), path)
    return path.is_dir()


def discard_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes of this machine have left half-written.

    Args:
        folder: The folder.
        name: Final name of what was being written; everything if :obj:`None`.
    """
    final = '.+' if name is None else re.escape(name)
    pattern = re.compile(rf'\.{final}\.{re.escape(HOST)}\.(\d+)\.[0-9a-f]{{8}}\.tmp')
    for entry in list(folder.iterdir()):
        if match := pattern.fullmatch(entry.name):
            pid = int(match[1])
            # A former process may have had the number of this one.
            own = pid == os.getpid()
            if entry.name not in _writing if own else not is_alive(pid):
                _discard(entry)


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name == 'nt':  # where asking by a signal would end the process
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Writes a folder under another name and swaps it in once it is whole.

    Two renames make the swap. A process that is killed between them leaves the
    former folder under a hidden name, from which :func:`recover_folder` takes it.

    Args:
        path: The folder; replaced with all its content.

    Yields:
        An empty folder to write into.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    discard_abandoned(path.parent, path.name)
    previous = _previous(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        try:
            yield temporary
            for entry in sorted(temporary.rglob('*')):
                _sync(entry)
            _sync(temporary)
            _discard(previous)
            if path.exists():
                os.rename(path, previous)
            os.rename(temporary, path)
        except BaseException:
            _discard(temporary)
            recover_folder(path)
            raise
    _sync(path.parent)
    _discard(previous)


def save_json(path: str | Path, value: Any) -> None:
    """Writes plain values as indented JSON, atomically; keys keep their order."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with atomic(path) as temporary:
        temporary.write_text(text + '\n', encoding='utf-8')


def load_json(
    path: str | Path, expected: type | Mapping[str, Any] | None = None
) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        expected: :obj:`dict` or :obj:`list`, what the file must hold; the entries
            that it must hold, as of :func:`check_entries`; :obj:`None` takes
            whatever is there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else.
    """
    kind = dict if isinstance(expected, Mapping) else expected
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged or not JSON: {error}") from None
    if kind is not None and not isinstance(value, kind):
        raise ValueError(
            f"'{path}' is damaged: it needs to hold a {kind.__name__} (got a "
            f'{type(value).__name__})'
        )
    if isinstance(expected, Mapping):
        check_entries(path, value, expected)
    return value


def check_entries(
    path: str | Path,
    value: Mapping[str, Any],
    kinds: Mapping[str, Any],
    prefix: str = '',
) -> None:
    """Refuses the content of a JSON file if it lacks what it needs to hold.

    Args:
        path: The file, for the message.
        value: Its content; further entries may be there.
        kinds: Name to type (or union of types), or to the same of a nested mapping.
        prefix: What stands before the names in the message.

    Raises:
        ValueError: If entries are missing (names all of them) or of another type.
    """
    lacks = [f"'{prefix}{name}'" for name in kinds if name not in value]
    if lacks:
        raise ValueError(
            f"'{path}' is damaged or of another version: it lacks {', '.join(lacks)}; "
            f'put the whole file back'
        )
    for name, kind in kinds.items():
        nested, found = isinstance(kind, Mapping), value[name]
        wanted = dict if nested else kind
        if not isinstance(found, wanted):
            raise ValueError(
                f"'{path}' is damaged: '{prefix}{name}' needs to be of type "
                f'{getattr(wanted, "__name__", wanted)} (got {found!r}); put the whole '
                f'file back'
            )
        if nested:
            check_entries(path, found, kind, f'{prefix}{name}.')


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes dense tensors as safetensors, atomically.

    Tensors that share memory are written once each, so that every name can be
    loaded by itself.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.
        metadata: Text kept in the header, see :func:`load_metadata`.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    # The file is written here rather than by safetensors, whose own error hides
    # what the operating system said (a full disk).
    # Without tensors an empty mapping of metadata would make it a damaged file.
    content = save(plain, metadata=dict(metadata) if metadata else None)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        with safe_open(path, framework='pt') as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is damaged or not a safetensors file: {error}"
        ) from None


def load_metadata(path: str | Path) -> dict[str, str]:
    """Reads the text that :func:`save_tensors` kept in the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def check_names(
    found: Mapping[str, Any], expected: Mapping[str, Any], what: str
) -> None:
    """Refuses names that are missing or not expected.

    Raises:
        ValueError: Naming up to five missing and five extra names.
    """

    def some(names: list[str]) -> str:
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        return ', '.join(repr(name) for name in names[:5]) + more

    problems = []
    if missing := sorted(set(expected) - set(found)):
        problems.append(f'it lacks {some(missing)}')
    if extra := sorted(set(found) - set(expected)):
        problems.append(f'it has also {some(extra)}')
    if problems:
        raise ValueError(f'{what} does not fit: {"; ".join(problems)}')


def load_tensors(
    path: str | Path, expected: Mapping[str, Shape] | None = None
) -> dict[str, Tensor]:
    """Reads a safetensors file to the CPU.

    Args:
        path: The file.
        expected: The names that the file must hold, no more and no less, with the
            shapes (or tensors of the shapes) that they must have;
            :obj:`None` takes whatever is there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, a name is missing or extra, or a shape
            differs.
    """
    with _opened(Path(path)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if expected is None:
        return tensors
    check_names(tensors, expected, f"'{path}'")
    for name, shape in expected.items():
        wanted = tuple(shape.shape if isinstance(shape, Tensor) else shape)
        if tuple(tensors[name].shape) != wanted:
            raise ValueError(
                f"'{path}' does not fit: '{name}' needs to be of shape "
                f'{list(wanted)} (got {list(tensors[name].shape)})'
            )
    return tensors


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, in the order of names.

    Equal on every device and for every memory layout.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
