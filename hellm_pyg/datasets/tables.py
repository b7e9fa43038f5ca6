"""CSV, TSV, Parquet, JSON lines, sequence text and frames as Arrow tables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellm_pyg.datasets.columns import NUMBER
from hellm_pyg.datasets.delimited import DELIMITERS, read_delimited, read_header
from hellm_pyg.datasets.frames import Frame
from hellm_pyg.datasets.guess import guess_columns
from hellm_pyg.datasets.table_errors import LONGEST, unreadable

if TYPE_CHECKING:
    import pyarrow

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


def _usual(path: Path) -> str:
    return '\t' if TABLES[ending(path)] == 'tsv' else ','


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
            names = read_header(source, _usual(source)).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(Path(str(source)), error) from error
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
            table = read_delimited(source, names, _usual(source))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(Path(str(source)), error) from error
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
        raise unreadable(path, error) from error
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
