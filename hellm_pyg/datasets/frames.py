"""Tables in memory, of any library that speaks Arrow's PyCapsule interface."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

# How pandas names an index without a name when it hands a frame to Arrow.
INDEX = re.compile(r'__index_level_\d+__')


class Frame:
    """A table given in place of a file: of pandas, polars, pyarrow, DuckDB, ...

    Args:
        value: Anything with ``__arrow_c_stream__`` or ``__arrow_c_array__``; a
            stream is read once.
        argument: Name of the argument, which stands for the file in messages.

    Raises:
        ValueError: If the value is no table, or a column mixes types.
    """

    def __init__(self, value: Any, argument: str) -> None:
        import pyarrow as pa

        if not is_frame(value):
            raise ValueError(
                f"'{argument}' needs a file or a table with '__arrow_c_stream__', as "
                f'of pandas, polars or pyarrow (got {type(value).__name__})'
            )
        try:
            table = pa.table(value)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(
                f"'{argument}' cannot be read as an Arrow table: {error}; a column of "
                f"mixed types needs one type, as of '.astype(str)' in pandas"
            ) from error
        kept = [
            position
            for position, name in enumerate(table.column_names)
            if not INDEX.fullmatch(name)
        ]
        self.argument = argument
        self.table: pyarrow.Table = table.select(kept).replace_schema_metadata(None)

    @property
    def sha256(self) -> str:
        """Hash of the columns' names, types and values, as hex digits."""
        import pyarrow as pa

        sink = _Digest()
        with pa.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        return sink.digest.hexdigest()

    def __str__(self) -> str:
        return self.argument


def is_frame(value: Any) -> bool:
    """Whether a value hands out its columns through Arrow's interface."""
    return hasattr(value, '__arrow_c_stream__') or hasattr(value, '__arrow_c_array__')


class _Digest(io.RawIOBase):
    """A file that keeps the hash of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes
