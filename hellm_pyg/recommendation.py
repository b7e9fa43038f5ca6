"""The best items of known and of new users, in original ids."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic
from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.datasets.ids import Id, IdMap
from hellm_pyg.evaluation import Recommender, iter_rank
from hellm_pyg.new_items import NewItems

FORMATS = ('.parquet', '.csv', '.jsonl')

logger = logging.getLogger(__name__)


class Recommendation(NamedTuple):
    """One recommended item.

    Args:
        user: Original id; :obj:`None` for a user given by a history.
        rank: From 1.
        item: Original id.
        title: Title, if the data have titles.
        score: What the model ranks by.
        history: Position, from 1, of the history that stands for a new user;
            :obj:`None` for a known one.
    """

    user: Id | None
    rank: int
    item: Id
    title: str | None
    score: float
    history: int | None = None


# The columns of a file without new users.
KNOWN = Recommendation._fields[:-1]


def recommend(
    model: Recommender,
    data: HeteroData,
    ids: IdMap,
    users: Sequence[Any] | None = None,
    histories: Sequence[Sequence[Any]] | None = None,
    k: int = 10,
    exclude_seen: bool = True,
    candidates: Sequence[Any] | None = None,
    new_items: NewItems | None = None,
    **options: Any,
) -> list[Recommendation]:
    """Recommends items to known users and to new ones.

    Everything known counts as the history of a known user, held-out items
    included; graph models propagate over all these interactions. A new user is
    the items that they interacted with. Of either, the last ``max_len`` items are
    read, and scored ``batch_size`` users at a time. Users who have seen all
    but a few items get those few, and a warning says how many such users there are.

    Args:
        model: A trained recommender.
        data: The split data that it was trained on.
        ids: Their id map.
        users: Original ids of known users; :obj:`None` for all of them, or for
            none if ``histories`` are given.
        histories: Original item ids of new users, oldest first.
        k: Number of items for each user.
        exclude_seen: Whether items of the history are left out.
        candidates: Original ids of the items that may be recommended, such as those
            in stock; :obj:`None` for all. The histories may hold others.
        new_items: Items that the model does not know, which are recommended, too,
            and may stand in histories and among the candidates.
        options: ``batch_size``, ``max_len``, ``batch_tokens`` and ``precision``,
            see :func:`~hellm_pyg.evaluation.rank`.

    Returns:
        At most ``k`` rows for each of ``users``, then for each of ``histories``.

    Raises:
        UnknownIdError: If a user or an item is unknown.
        ValueError: If a history is empty, there are no candidates, ``k`` is no whole
            number from 1 on, a new item is known, or the model gives scores that are
            not finite.
    """
    ids = _with_new(ids, data, new_items, options)
    options['candidates'] = _candidates(ids, candidates)
    if users is None:
        known = torch.arange(ids.num_users if histories is None else 0)
    else:
        known = ids.user_index(users)
    parts: list[Tensor | SequenceBatch] = [known] if known.numel() > 0 else []
    parts += [_new_users(ids, histories)] if histories else []
    batches = _ranked(model, data, ids, parts, k, exclude_seen, options)
    return [line for lines in batches for line in lines]


def export_top_n(
    model: Recommender,
    data: HeteroData,
    ids: IdMap,
    path: str | Path,
    k: int = 10,
    exclude_seen: bool = True,
    candidates: Sequence[Any] | None = None,
    new_items: NewItems | None = None,
    batch_size: int = 512,
    **options: Any,
) -> int:
    """Streams the recommendations of all users into a file.

    The file appears when it is complete; no more than ``batch_size`` users are
    held at a time. Users with fewer than ``k`` items left get a shorter list, as
    of :func:`recommend`.

    Args:
        model: See :func:`recommend`, for the other arguments, too.
        data: The split data.
        ids: Their id map.
        path: A ``.parquet``, ``.csv`` or ``.jsonl`` file, with the columns of
            :class:`Recommendation` but ``history``.
        k: Number of items for each user.
        exclude_seen: Whether items of the history are left out.
        candidates: As of :func:`recommend`.
        new_items: As of :func:`recommend`.
        batch_size: Users scored at once.
        options: As of :func:`recommend`, and ``progress``.

    Returns:
        Number of rows written.

    Raises:
        ValueError: If the format is unknown, ``path`` is a folder, ``k`` is no whole
            number from 1 on, a new item is known, or the model gives scores that are
            not finite.
    """
    path, count = checked_path(path), 0
    ids = _with_new(ids, data, new_items, options)
    options |= {'batch_size': batch_size, 'candidates': _candidates(ids, candidates)}
    with _writer(path, ids, KNOWN) as write:
        for lines in _ranked(model, data, ids, [None], k, exclude_seen, options):
            write(lines)
            count += len(lines)
    return count


def write_rows(rows: Sequence[Recommendation], path: str | Path, ids: IdMap) -> None:
    """Writes rows of :func:`recommend` as Parquet, CSV or JSONL.

    With new users among them the file also has the column ``history``.

    Args:
        rows: The rows.
        path: A ``.parquet``, ``.csv`` or ``.jsonl`` file.
        ids: The ids that they are of, with new items among them
            (:meth:`~hellm_pyg.datasets.IdMap.with_items`) if there are any.

    Raises:
        ValueError: If the format is unknown, or ``path`` is a folder.
    """
    new = any(row.history is not None for row in rows)
    columns = Recommendation._fields if new else KNOWN
    with _writer(checked_path(path), ids, columns) as write:
        write(rows)


def _with_new(
    ids: IdMap, data: HeteroData, new_items: NewItems | None, options: dict[str, Any]
) -> IdMap:
    """Adds what scores new items to the options, and returns the ids of all items."""
    if new_items is None:
        return ids
    options['neighbor_scores'] = new_items.scores(data)
    return ids.with_items(new_items.ids, new_items.titles)


def _candidates(ids: IdMap, candidates: Sequence[Any] | None) -> Tensor | None:
    return None if candidates is None else ids.item_index(candidates)


def _new_users(ids: IdMap, histories: Sequence[Sequence[Any]]) -> SequenceBatch:
    items = [ids.item_index(history) for history in histories]
    length = torch.tensor([item.numel() for item in items])
    if bool((length == 0).any()):
        empty = (length == 0).nonzero().view(-1).tolist()
        raise ValueError(
            f"'histories' needs at least one item each (got none at position {empty})"
        )
    row = torch.arange(len(items)).repeat_interleave(length)
    return SequenceBatch(torch.full((len(items),), -1), torch.cat(items), row)


def _ranked(
    model: Recommender,
    data: HeteroData,
    ids: IdMap,
    parts: Sequence[Tensor | SequenceBatch | None],
    k: int,
    exclude_seen: bool,
    options: Mapping[str, Any],
) -> Iterator[list[Recommendation]]:
    """The lines of each batch of users; at the end says how many lists are short."""
    total = short = new = 0
    kind = 'items' if options.get('candidates') is None else 'candidates'
    for part in parts:
        for user, item, score in iter_rank(
            model, data, part, k, exclude_seen, allow_fewer=True, **options
        ):
            total += user.numel()
            short += int(((item >= 0).sum(dim=1) < k).sum())
            yield _lines(ids, user, item, score, new)
            new += int((user < 0).sum())
    if short > 0:
        logger.warning(
            '%d of %d users have fewer than %d %s: their lists are shorter',
            short,
            total,
            k,
            f'{"unseen " * exclude_seen}{kind}',
        )


def _lines(
    ids: IdMap, user: Tensor, item: Tensor, score: Tensor, new: int
) -> list[Recommendation]:
    """The lines of a batch of known or of new users, ``new`` of whom came before."""
    titles = ids.titles
    return [
        Recommendation(
            user=None if row < 0 else ids.user_id(row),
            rank=rank,
            item=ids.item_id(index),
            title=(titles[index] or None) if titles else None,
            score=value,
            history=position if row < 0 else None,
        )
        for position, (row, indices, values) in enumerate(
            zip(user.tolist(), item.tolist(), score.tolist(), strict=True), new + 1
        )
        for rank, (index, value) in enumerate(zip(indices, values, strict=True), 1)
        if index >= 0
    ]


def checked_path(path: str | Path, argument: str = 'path') -> Path:
    """Refuses what no recommendations can be written to.

    Args:
        path: The file.
        argument: Name of the argument that it was given as.

    Raises:
        ValueError: If the format is unknown, or ``path`` is a folder.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(
            f"'{argument}' needs to end in {', '.join(FORMATS)} (got {str(path)!r})"
        )
    if path.is_dir():
        raise ValueError(
            f"'{argument}' needs to be a file (got the folder {str(path)!r}): give "
            f'another name'
        )
    return path


@contextmanager
def _writer(
    path: Path, ids: IdMap, columns: Sequence[str]
) -> Iterator[Callable[[Sequence[Recommendation]], None]]:
    with atomic(path) as temporary:
        if path.suffix == '.parquet':
            with _parquet(temporary, ids, columns) as write:
                yield write
            return
        with temporary.open('w', newline='', encoding='utf-8') as file:
            if path.suffix == '.jsonl':
                yield lambda rows: file.writelines(
                    json.dumps(
                        {name: getattr(row, name) for name in columns},
                        ensure_ascii=False,
                    )
                    + '\n'
                    for row in rows
                )
                return
            table = csv.writer(file, lineterminator='\n')
            table.writerow(columns)
            yield lambda rows: table.writerows(row[: len(columns)] for row in rows)


def _fits_int64(key: int | str) -> bool:
    return isinstance(key, int) and -(2**63) <= key < 2**63


@contextmanager
def _parquet(
    path: Path, ids: IdMap, columns: Sequence[str]
) -> Iterator[Callable[[Sequence[Recommendation]], None]]:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = [
        pa.int64() if all(_fits_int64(i) for i in known) else pa.string()
        for known in (ids.users, ids.items)
    ]
    types = [kinds[0], pa.int32(), kinds[1], pa.string(), pa.float32(), pa.int32()]
    types = types[: len(columns)]
    schema = pa.schema(list(zip(columns, types, strict=True)))

    def column(rows: Sequence[Recommendation], index: int) -> Any:
        values = [row[index] for row in rows]
        if types[index] == pa.string():
            values = [None if value is None else str(value) for value in values]
        return pa.array(values, types[index])

    with parquet.ParquetWriter(path, schema) as writer:

        def write(rows: Sequence[Recommendation]) -> None:
            arrays = [column(rows, index) for index in range(len(types))]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield write
