"""CSV, TSV, Parquet, JSON lines, sequence text and frames as Arrow tables."""

from __future__ import annotations

import csv as standard_csv
import io
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hellm_pyg.datasets.columns import NUMBER
from hellm_pyg.datasets.frames import Frame
from hellm_pyg.datasets.guess import guess_columns
from hellm_pyg.datasets.table_errors import BLOCK, unreadable

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import csv

logger = logging.getLogger(__name__)

TABLES = {
    '.csv': 'csv',
    '.tsv': 'tsv',
    '.parquet': 'parquet',
    '.pq': 'parquet',
    '.jsonl': 'json',
    '.ndjson': 'json',
    '.json': 'json',
}
SEQUENCES = '.txt'
DELIMITERS = {',': 'commas', '\t': 'tabs', ';': 'semicolons', '|': 'bars'}
# Bytes of a line; several lines of this length are in memory at once.
LONGEST = 1 << 24

Source = Path | Frame


def as_source(
    value: Any, argument: str, endings: Sequence[str] = tuple(TABLES)
) -> Source:
    """A file, checked as by :func:`checked_file`, or a table of any library.

    Raises:
        ValueError: If it is neither, or the file is refused.
    """
    if isinstance(value, str | os.PathLike):
        path = checked_file(Path(value), argument, endings)
        if (shown := printable(str(path))) != str(path):
            raise ValueError(
                f"'{argument}' needs names in UTF-8, by which Arrow opens files (got "
                f"'{shown}'); rename the file or its folder"
            )
        return path
    return Frame(value, argument)


def checked_file(
    path: str | Path, argument: str, endings: Sequence[str], compressed: bool = True
) -> Path:
    """The path of an existing file with one of the known endings.

    Args:
        path: The file.
        argument: Name of the argument that the path was given as.
        endings: Accepted endings, lower case.
        compressed: Whether a further ``.gz`` is accepted.

    Raises:
        ValueError: If the file is missing (names its nearest neighbour in the
            folder), empty, or of another kind (lists the accepted endings).
    """
    path = Path(path).expanduser()
    if ending(path) not in endings or (path.suffix.lower() == '.gz' and not compressed):
        gz = ', each also with .gz' if compressed else ''
        raise ValueError(
            f"'{argument}' needs a file that ends in {', '.join(endings)}{gz} "
            f"(got '{path}')"
        )
    if not path.is_file():
        raise ValueError(f"'{argument}' is not a file (got '{path}'){_beside(path)}")
    if path.stat().st_size == 0:
        raise ValueError(f"'{argument}' is an empty file (got '{path}')")
    # Of a link, its own name counts: that of its target may say nothing.
    return path.parent.resolve() / path.name


def ending(path: Path) -> str:
    """The ending that names the format: of ``a.csv.gz`` it is ``.csv``."""
    return Path(path.name.lower().removesuffix('.gz')).suffix


def printable(name: str) -> str:
    """A file's name as text that can be written: bytes that are none are replaced."""
    return os.fsencode(name).decode('utf-8', 'replace')


def is_untyped(source: Source) -> bool:
    """Whether the values of a source are text, whatever they mean."""
    return isinstance(source, Path) and TABLES[ending(source)] in ('csv', 'tsv')


def _beside(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, names, 1)
    return f"; did you mean '{path.parent / nearest[0]}'?" if nearest else ''


def require_column(
    name: str, names: Sequence[str], source: Source, argument: str
) -> None:
    """Refuses a column that the source lacks.

    Raises:
        ValueError: Names the columns that exist and the nearest one.
    """
    if name in names:
        return
    nearest = get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"; did you mean {argument}='{nearest[0]}'?" if nearest else ''
    if not hint and any(re.match(NUMBER, known) for known in names):
        hint = '; the first line needs to hold the names of the columns: add it'
    raise ValueError(
        f"'{argument}' names the column '{name}', which '{source}' does not have "
        f'(its columns: {", ".join(map(repr, names))}){hint}'
    )


def column_names(source: Source) -> list[str]:
    """Names of a table's columns, without reading all of it.

    Columns without a name, as pandas writes its index, are left out.

    Raises:
        ValueError: If the source cannot be read, has fewer than two columns or
            two of one name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if isinstance(source, Frame):
            names = source.table.column_names
        elif TABLES[ending(source)] == 'parquet':
            names = parquet.read_schema(_parquet_source(source)).names
        elif TABLES[ending(source)] == 'json':
            names = _read_json(source).column_names
        else:
            names = _header(source).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(Path(str(source)), error, LONGEST) from error
    names = [name for name in names if name]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(
            f"'{source}' has the column '{repeated[0]}' {names.count(repeated[0])} "
            f'times (its columns: {", ".join(map(repr, names))}); rename all but one'
        )
    if len(names) < 2:
        shown = ', '.join(map(repr, names))
        raise ValueError(
            f"'{source}' needs at least two columns (got {shown}); '.csv' is separated "
            f"by commas, '.tsv' by tabs"
        )
    return names


def read_table(source: Source, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Reads the named columns of a table, or all of them.

    Columns of CSV and TSV come as text exactly as written, so that ``007``
    stays ``007``; others keep their types. TSV knows quotes only if all of its names
    are in quotes.

    Raises:
        ValueError: If the source cannot be read or has no rows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = list(columns or column_names(source))
    try:
        if isinstance(source, Frame):
            table = source.table.select(names)
        elif TABLES[ending(source)] == 'parquet':
            table = parquet.read_table(_parquet_source(source), columns=names)
        elif TABLES[ending(source)] == 'json':
            table = _json_as_written(source, names)
        else:
            table = _read_delimited(source, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(Path(str(source)), error, LONGEST) from error
    if table.num_rows == 0:
        raise ValueError(f"'{source}' has no rows")
    return table


def read_sequences(path: Path) -> pyarrow.Table:
    """Reads lines of ``user item item ...`` as columns ``user`` and ``item``.

    Raises:
        ValueError: If no line has a user and an item, or the first one holds the
            names of a table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        with pa.input_stream(path) as stream:
            text = stream.read().decode('utf-8-sig')
    except (UnicodeDecodeError, OSError) as error:
        raise unreadable(path, error, LONGEST) from error
    lines = pc.utf8_trim_whitespace(pa.array(text.splitlines(), pa.large_string()))
    lines = lines.filter(pc.not_equal(lines, ''))
    if len(lines) == 0:
        raise ValueError(f"'{path}' has no rows")
    _refuse_table(path, lines[0].as_py())
    parts = pc.split_pattern_regex(lines, r'\s+')
    user = pc.list_element(parts, 0)
    repeated = len(user) - pc.count_distinct(user).as_py()
    if repeated:
        logger.warning(
            '%s: %d of %d lines begin with a user that an earlier one has; sequence '
            'text has one line a user: if this is a table, let its name end in .tsv or '
            '.csv',
            path,
            repeated,
            len(user),
        )
    items = pc.list_slice(parts, 1)
    row = pc.list_parent_indices(items)
    if len(row) == 0:
        raise ValueError(
            f"'{path}' needs lines of 'user item item ...' (got a single column, "
            f'first line {lines[0].as_py()[:80]!r})'
        )
    without = len(lines) - pc.count_distinct(row).as_py()
    if without:
        logger.warning(
            '%s: %d of %d lines hold a user without items', path, without, len(lines)
        )
    return pa.table({'user': user.take(row), 'item': pc.list_flatten(items)})


def _refuse_table(path: Path, first: str) -> None:
    for mark, marks in DELIMITERS.items():
        names = [name.strip(' "') for name in first.split(mark)]
        if {'user', 'item'} <= guess_columns(names).keys():
            kind = '.tsv' if mark == '\t' else '.csv'
            raise ValueError(
                f"'{path}' needs lines of 'user item item ...' (got the first line "
                f'{first[:80]!r}, which names the columns of a table, separated by '
                f"{marks}); let its name end in '{kind}'"
            )


class _Header(NamedTuple):
    names: list[str]
    delimiter: str
    quoted: bool  # whether quotes are no part of names and values


def _header(path: Path) -> _Header:
    """The names in the first line, and what separates them.

    Where the usual delimiter finds one column and a single other one finds more,
    that one is meant: a table of one column is of no use.
    """
    import pyarrow as pa

    with pa.input_stream(path) as stream:
        head = stream.read(BLOCK)
    if b'\n' not in head and len(head) == BLOCK:
        raise OSError(
            'its first line, where the names of the columns belong, is longer than '
            '1 MiB'
        )
    text = head[: head.rfind(b'\n') + 1 or None].decode('utf-8-sig')
    if '\0' in text:
        raise OSError('it holds zero bytes')
    first = next((line for line in re.split(r'[\r\n]', text) if line.strip()), '')
    if re.fullmatch(r'"?sep=.?"?', first.strip(), re.IGNORECASE):
        raise OSError(
            f'its first line is {first!r}, which only Excel reads: remove it, so that '
            f'the names of the columns come first'
        )
    tsv = TABLES[ending(path)] == 'tsv'
    usual = '\t' if tsv else ','
    raw = first.split('\t')
    if tsv and len(raw) > 1 and not all(re.fullmatch('".*"', name) for name in raw):
        return _Header(raw, usual, quoted=False)
    names = {usual: _split(text, usual)}
    for mark in DELIMITERS:
        with suppress(OSError):
            names[mark] = _split(text, mark)
    others = [m for m in DELIMITERS if m != usual and len(names.get(m, ())) > 1]
    if len(names[usual]) > 1 or len(others) != 1:
        return _Header(names[usual], usual, quoted=not tsv or len(raw) > 1)
    return _Header(names[others[0]], others[0], quoted=True)


def _split(text: str, delimiter: str) -> list[str]:
    lines = io.StringIO(text, newline='')
    rows = standard_csv.reader(lines, delimiter=delimiter)
    try:
        names = next((row for row in rows if row), [])
        if any('\n' in name for name in names):
            lines.seek(0)
            next(standard_csv.reader(lines, delimiter=delimiter, strict=True))
    except standard_csv.Error as error:
        if 'expected after' in str(error):  # a quote within a name, which is closed
            return names
        raise OSError(
            'its first line, where the names of the columns belong, opens a quote that '
            'is never closed, or has a name of more than 128 KiB; mend it'
        ) from None
    return names


def _read_delimited(path: Path, names: list[str]) -> pyarrow.Table:
    import pyarrow as pa
    from pyarrow import csv

    every, delimiter, quoted = _header(path)
    if delimiter != ('\t' if TABLES[ending(path)] == 'tsv' else ','):
        logger.warning(
            '%s: columns are taken to be separated by %s: %s',
            path,
            DELIMITERS[delimiter],
            ', '.join(map(repr, every)),
        )
    options = {
        'delimiter': delimiter,
        'quote_char': '"' if quoted else False,
        'newlines_in_values': quoted,
    }
    convert = csv.ConvertOptions(
        include_columns=names, column_types={name: pa.string() for name in names}
    )
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(block_size=LONGEST),
            csv.ParseOptions(**options),
            convert,
        )
    except pa.ArrowInvalid as error:
        if 'Empty CSV' in str(error):  # a header that no line break ends
            return pa.table({name: pa.array([], pa.string()) for name in names})
        if 'Expected' not in str(error):
            raise
        raise _uneven(path, options) or error from error
    if quoted:
        _refuse_open_quote(path, table.num_rows, delimiter)
    return table


def _uneven(path: Path, options: dict[str, Any]) -> Exception | None:
    """What to say of the first row with another number of columns."""
    import pyarrow as pa
    from pyarrow import csv

    found: list[csv.InvalidRow] = []

    def keep(row: csv.InvalidRow) -> str:
        found.append(row)
        return 'error'

    parse = csv.ParseOptions(**options, invalid_row_handler=keep)
    read = csv.ReadOptions(block_size=LONGEST, use_threads=False)
    with suppress(pa.ArrowException):
        csv.read_csv(path, read, parse)
    if not found:
        return None
    row = found[0]
    return pa.ArrowInvalid(
        f'row {row.number - 1} has {row.actual_columns} columns instead of '
        f'{row.expected_columns} (got {row.text[:80]!r}); put a value that holds a '
        f'delimiter in quotes, and close every quote'
    )


def _refuse_open_quote(path: Path, num_rows: int, delimiter: str) -> None:
    """A stray quote makes one value of the lines that follow, which Arrow accepts."""
    import pyarrow as pa

    if _filled_lines(path) <= num_rows + 1:
        return
    limit = standard_csv.field_size_limit(LONGEST)
    try:
        with pa.input_stream(path) as stream:
            lines = io.TextIOWrapper(stream, 'utf-8-sig', 'replace', newline='')
            rows = standard_csv.reader(lines, delimiter=delimiter, strict=True)
            first = 1
            for _ in rows:
                first = rows.line_num + 1
    except standard_csv.Error as error:
        raise pa.ArrowInvalid(
            f'the row of line {first} opens a quote that is never closed, or within a '
            f'value ({error}, line {rows.line_num}); close it, or put the value in '
            f'quotes and write the quotes within it twice'
        ) from None
    finally:
        standard_csv.field_size_limit(limit)


def _filled_lines(path: Path) -> int:
    import pyarrow as pa

    count, within = 0, False
    with pa.input_stream(path) as stream:
        while block := stream.read(BLOCK):
            signs = np.frombuffer(block, np.uint8)
            filled = (signs != ord('\n')) & (signs != ord('\r'))
            count += int(np.count_nonzero(filled[1:] & ~filled[:-1]))
            count += bool(filled[0]) and not within
            within = bool(filled[-1])
    return count


def _read_json(path: Path) -> pyarrow.Table:
    from pyarrow import json

    return json.read_json(path, json.ReadOptions(block_size=LONGEST))


def _json_as_written(path: Path, names: list[str]) -> pyarrow.Table:
    """The columns, without the dates that Arrow makes of text like one."""
    import pyarrow as pa
    from pyarrow import json

    table = _read_json(path).select(names)
    dates = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
    if not dates:
        return table
    texts = pa.schema([(name, pa.string()) for name in dates])
    read = json.ReadOptions(block_size=LONGEST)
    return json.read_json(path, read, json.ParseOptions(texts)).select(names)


def _parquet_source(path: Path) -> pyarrow.NativeFile | Path:
    import pyarrow as pa

    if path.suffix.lower() != '.gz':
        return path
    with pa.input_stream(path) as stream:
        return pa.BufferReader(stream.read_buffer())
