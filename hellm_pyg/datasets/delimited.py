"""Text whose values are separated by commas, tabs, semicolons or bars."""

from __future__ import annotations

import csv as standard_csv
import io
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hellm_pyg.datasets.table_errors import BLOCK, LONGEST

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import csv

logger = logging.getLogger(__name__)

DELIMITERS = {',': 'commas', '\t': 'tabs', ';': 'semicolons', '|': 'bars'}


class Header(NamedTuple):
    """The first line of a table.

    Args:
        names: Names of the columns.
        delimiter: What separates them.
        quoted: Whether quotes are no part of names and values.
    """

    names: list[str]
    delimiter: str
    quoted: bool


def read_header(path: Path, usual: str) -> Header:
    """The names in the first line, and what separates them.

    Where the usual delimiter finds one column and a single other one finds more,
    that one is meant: a table of one column is of no use.

    Args:
        path: The file.
        usual: Comma or tab.

    Raises:
        OSError: If the line is none that names columns.
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
    tsv = usual == '\t'
    raw = first.split('\t')
    if tsv and len(raw) > 1 and not all(re.fullmatch('".*"', name) for name in raw):
        return Header(raw, usual, quoted=False)
    names = {usual: _split(text, usual)}
    for mark in DELIMITERS:
        with suppress(OSError):
            names[mark] = _split(text, mark)
    others = [m for m in DELIMITERS if m != usual and len(names.get(m, ())) > 1]
    if len(names[usual]) > 1 or len(others) != 1:
        return Header(names[usual], usual, quoted=not tsv or len(raw) > 1)
    return Header(names[others[0]], others[0], quoted=True)


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


def read_delimited(path: Path, names: list[str], usual: str) -> pyarrow.Table:
    """Reads columns as text, exactly as written.

    Args:
        path: The file.
        names: The columns.
        usual: Comma or tab; see :func:`read_header`.

    Raises:
        OSError: As of :func:`read_header`.
        ArrowInvalid: If a row has another number of columns, or a quote is stray.
    """
    import pyarrow as pa
    from pyarrow import csv

    every, delimiter, quoted = read_header(path, usual)
    if delimiter != usual:
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
