"""What is wrong with a file that cannot be read, and what to do about it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BLOCK = 1 << 20
# Bytes of a line; several lines of this length are in memory at once.
LONGEST = 1 << 24
SHOWN = 200


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error to raise for a file that Arrow could not read.

    The file is read once more to find the line, so that the common case pays
    nothing.

    Args:
        path: The file.
        error: What went wrong.
    """
    kind = Path(path.name.lower().removesuffix('.gz')).suffix[1:]
    text = f"'{path}' cannot be read as {kind}: "
    reason = None
    with suppress(OSError):  # of the second reading, of which the first tells
        reason = _reason(path, kind, str(error))
    return ValueError(text + (reason or _short(str(error))))


def _reason(path: Path, kind: str, message: str) -> str | None:
    if 'compressed stream' in message or 'inflate' in message:
        return (
            f'its gzip stream is cut off or damaged ({message}); copy or download the '
            f'file again'
        )
    if kind in ('parquet', 'pq'):
        if 'magic bytes' in message or 'footer' in message.lower():
            return (
                'its footer is missing, so it is no Parquet file or an incomplete one; '
                'write, copy or download it again'
            )
        return None
    return (
        _packed(path)
        or _encoding(path)
        or _long_line(path)
        or (_json_line(path) if kind in ('json', 'jsonl', 'ndjson') else None)
    )


def _packed(path: Path) -> str | None:
    head = next(_blocks(path), b'')
    if head.startswith(b'\x1f\x8b'):
        return "it is compressed by gzip; let its name end in '.gz'"
    if head.startswith(b'PK\x03\x04'):
        return 'it is a zip archive or a spreadsheet; unpack it, or save it as text'
    return None


def _encoding(path: Path) -> str | None:
    blocks = _blocks(path)
    decoder = codecs.getincrementaldecoder('utf-8')()
    line = 1
    for number, block in enumerate(blocks):
        if number == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "it is UTF-16; save it as UTF-8, as with 'iconv -f UTF-16 -t UTF-8'"
        if b'\0' in block:
            return (
                'it holds zero bytes, as UTF-16 does and files that are no text; save '
                "it as UTF-8, as with 'iconv -f UTF-16 -t UTF-8'"
            )
        pending = decoder.getstate()[0]
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            # The decoder counts from the bytes that it had kept back.
            seen = (pending + block)[: error.start]
            line += seen.count(b'\n')
            bad = (pending + block)[error.start]
            return (
                f'line {line} is not UTF-8 (byte 0x{bad:02X}); save it as UTF-8, as '
                f"with 'iconv -f WINDOWS-1252 -t UTF-8'"
            )
        line += block.count(b'\n')
    return None


def _long_line(path: Path) -> str | None:
    line, length = 1, 0
    for block in _blocks(path):
        *ended, rest = block.split(b'\n')
        for piece in ended:
            length += len(piece)
            if length > LONGEST:
                break
            line, length = line + 1, 0
        else:
            length += len(rest)
        if length > LONGEST:
            return (
                f'line {line} is longer than {LONGEST >> 20} MiB; split it into '
                f'lines, or look for a quote that is not closed before it'
            )
    return None


def _json_line(path: Path) -> str | None:
    """The first line that is no object, or gives a field another type."""
    kinds: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except ValueError as error:
            if not kinds and line.strip() in ('[', '{'):
                lines = '.[]' if line.strip() == '[' else '.'
                return (
                    f'line {number} needs an object by itself, as every line (got '
                    f"{line.strip()!r}); it is turned into lines by 'jq -c {lines}'"
                )
            return f'line {number} is not JSON ({error}); mend or remove it'
        if not isinstance(row, dict):
            return (
                f'line {number} needs an object, \'{{"user": 1, ...}}\' (got '
                f"{_short(repr(row), 40)}); a list is turned into lines by 'jq -c .[]'"
            )
        for name, value in row.items():
            kind = _json_kind(value)
            first, where = kinds.setdefault(name, (kind, number))
            if kind == 'null':
                continue
            if first == 'null':
                kinds[name] = (kind, number)
            elif kind != first:
                return (
                    f"column '{name}' is {first} in line {where} and {kind} in line "
                    f'{number} (got {_short(repr(value), 40)}); write one of both '
                    f'throughout, for ids text'
                )
    return None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{repeated}' stands in it twice")
    return dict(pairs)


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return 'true or false'
    names = {str: 'text', int: 'a number', float: 'a number', list: 'a list'}
    return 'null' if value is None else names.get(type(value), 'an object')


def _blocks(path: Path) -> Iterator[bytes]:
    import pyarrow as pa

    with pa.input_stream(path) as stream:
        while block := stream.read(BLOCK):
            yield block


def _lines(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder('utf-8-sig')(errors='replace')
    rest = ''
    for block in _blocks(path):
        *ended, rest = (rest + decoder.decode(block)).split('\n')
        yield from ended
    if rest:
        yield rest


def _short(text: str, length: int = SHOWN) -> str:
    return text if len(text) <= length else f'{text[:length]} ...'
