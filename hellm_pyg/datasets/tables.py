"""CSV, TSV, Parquet, JSON lines and sequence text as Arrow tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

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
    return path.resolve()


def ending(path: Path) -> str:
    """The ending that names the format: of ``a.csv.gz`` it is ``.csv``."""
    return Path(path.name.lower().removesuffix('.gz')).suffix


def _beside(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, names, 1)
    return f"; did you mean '{path.parent / nearest[0]}'?" if nearest else ''


def require_column(name: str, names: Sequence[str], path: Path, argument: str) -> None:
    """Refuses a column that the file lacks.

    Raises:
        ValueError: Names the columns that exist and the nearest one.
    """
    if name in names:
        return
    nearest = get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"; did you mean {argument}='{nearest[0]}'?" if nearest else ''
    raise ValueError(
        f"'{argument}' names the column '{name}', which '{path}' does not have "
        f'(its columns: {", ".join(map(repr, names))}){hint}'
    )


def column_names(path: Path) -> list[str]:
    """Names of a table's columns, without reading all of it.

    Raises:
        ValueError: If the file cannot be read or has a single column.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    kind = TABLES[ending(path)]
    try:
        if kind == 'parquet':
            names = parquet.read_schema(_parquet_source(path)).names
        elif kind == 'json':
            names = read_table(path).column_names
        else:
            with csv.open_csv(path, parse_options=_delimited(kind)) as reader:
                names = reader.schema.names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if len(names) < 2:
        shown = ', '.join(map(repr, names))
        raise ValueError(
            f"'{path}' needs at least two columns (got {shown}); '.csv' is separated "
            f"by commas, '.tsv' by tabs"
        )
    return names


def read_table(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Reads the named columns of a table, or all of them.

    Columns of CSV and TSV come as text exactly as written, so that ``007``
    stays ``007``; Parquet and JSON lines keep their types. TSV knows no quotes.

    Raises:
        ValueError: If the file cannot be read or has no rows.
    """
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    kind = TABLES[ending(path)]
    try:
        if kind == 'parquet':
            source = _parquet_source(path)
            table = parquet.read_table(source, columns=columns and list(columns))
        elif kind == 'json':
            # A line longer than a block is an error: the block is large.
            options = json.ReadOptions(block_size=1 << 26)
            table = json.read_json(path, read_options=options)
            table = table.select(columns) if columns else table
        else:
            names = columns or column_names(path)
            table = csv.read_csv(
                path,
                parse_options=_delimited(kind),
                convert_options=csv.ConvertOptions(
                    include_columns=list(names),
                    column_types={name: pa.string() for name in names},
                ),
            )
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if table.num_rows == 0:
        raise ValueError(f"'{path}' has no rows")
    return table


def read_sequences(path: Path) -> pyarrow.Table:
    """Reads lines of ``user item item ...`` as columns ``user`` and ``item``.

    Raises:
        ValueError: If no line has a user and an item.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        with pa.input_stream(path) as stream:
            text = stream.read().decode('utf-8-sig')
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from error
    lines = pc.utf8_trim_whitespace(pa.array(text.splitlines(), pa.large_string()))
    lines = lines.filter(pc.not_equal(lines, ''))
    if len(lines) == 0:
        raise ValueError(f"'{path}' has no rows")
    parts = pc.split_pattern_regex(lines, r'\s+')
    user = pc.list_element(parts, 0)
    items = pc.list_slice(parts, 1)
    row = pc.list_parent_indices(items)
    if len(row) == 0:
        raise ValueError(
            f"'{path}' needs lines of 'user item item ...' (got a single column, "
            f'first line {lines[0].as_py()!r})'
        )
    without = len(lines) - pc.count_distinct(row).as_py()
    if without:
        logger.warning(
            '%s: %d of %d lines hold a user without items', path, without, len(lines)
        )
    return pa.table({'user': user.take(row), 'item': pc.list_flatten(items)})


def _delimited(kind: str) -> pyarrow.csv.ParseOptions:
    from pyarrow import csv

    if kind == 'tsv':
        return csv.ParseOptions(delimiter='\t', quote_char=False)
    return csv.ParseOptions(newlines_in_values=True)


def _parquet_source(path: Path) -> pyarrow.NativeFile | Path:
    import pyarrow as pa

    if path.suffix.lower() != '.gz':
        return path
    with pa.input_stream(path) as stream:
        return pa.BufferReader(stream.read_buffer())


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"'{path}' cannot be read as {ending(path)[1:]}: {error}")
