from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hellm_pyg.cli.recommendation import split_ids
from tests.shop import NUM_ITEMS, NUM_USERS, write_shop

from .running import error, hellm


def test_recommend_in_original_ids(shop: Path) -> None:
    output = hellm(
        'recommend', shop / 'graph', '--user', 'u03', '-u', 'u04',
        '--history', 'p001 p004', '-k', '2',
    ).stdout  # fmt: skip
    assert [line for line in output.splitlines() if 'ser ' in line] == [
        'User u03', 'User u04', 'New user 1'
    ]  # fmt: skip
    rows = re.findall(r'│ ([12]) +│ (p\d{3}) │ Thing, (\d+) ', output)
    assert [int(rank) for rank, _, _ in rows] == [1, 2] * 3
    assert all(int(item[1:]) == int(title) for _, item, title in rows)
    with (shop / 'log.csv').open() as file:
        seen = {r['sku'] for r in csv.DictReader(file) if r['customer'] == 'u03'}
    assert not seen & {item for _, item, _ in rows[:2]}
    assert not {'p001', 'p004'} & {item for _, item, _ in rows[4:]}


def test_recommend_of_what_is_in_stock(shop: Path, tmp_path: Path) -> None:
    stock, out = tmp_path / 'stock.txt', tmp_path / 'top.jsonl'
    stock.write_text('\ufeffp001\n\n p002 \np003\nnew-1\n', encoding='utf-8')
    done = hellm(
        'recommend', shop / 'graph', '--all', '-k', 3, '--include-seen',
        '--candidates', stock, '--out', out,
    )  # fmt: skip
    assert '1 of 4 items are unknown' in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 * NUM_USERS
    assert {row['item'] for row in rows} == {'p001', 'p002', 'p003'}
    stock.write_text('new-1\n')
    command = ['recommend', shop / 'graph', '-u', 'u03', '--candidates']
    assert "(got ['new-1'] in" in error(*command, stock)
    assert "'--candidates' needs a readable" in error(*command, tmp_path / 'none')
    stock.write_bytes(b'\xff\xfe\x00')
    assert "'--candidates' needs a readable" in error(*command, stock)


def test_recommend_new_items(shop: Path, tmp_path: Path) -> None:
    table, x, out = (tmp_path / name for name in ('new.csv', 'x.npy', 'top.parquet'))
    table.write_text('sku,title\np001,"Thing, 1"\nq1,New one\nq2,New two\n')
    np.save(x, np.eye(3, dtype='float32'))
    new = ['--new-items', table, '--new-features', f'text={x}']
    done = hellm(
        'recommend', shop / 'graph', '-u', 'u03', '--history', 'p001 q2', '-k', 99, *new
    )
    assert f'{table}: new items: 2' in done.stderr
    assert done.stdout.count('New one') == 2
    assert done.stdout.count('New two') == 1  # the other history has it
    stock = tmp_path / 'stock.txt'
    stock.write_text('q1\np001\nq9\n')
    options = [*new, '--candidates', stock, '-k', 2, '--include-seen', '-o', out]
    done = hellm('recommend', shop / 'seq', '--all', *options)
    assert '1 of 3 items are unknown' in done.stderr
    from pyarrow import parquet

    rows = parquet.read_table(out).to_pylist()
    assert len(rows) == 2 * NUM_USERS
    assert {row['item'] for row in rows} == {'q1', 'p001'}
    hellm('recommend', shop / 'seq', '-u', 'u03', *options)
    assert len(parquet.read_table(out).to_pylist()) == 2


def test_new_items_that_cannot_be_read(shop: Path, tmp_path: Path) -> None:
    table = tmp_path / 'new.csv'
    table.write_text('sku,title\nq1,New one\n')
    command = ['recommend', shop / 'seq', '-u', 'u03']
    message = error(*command, '--new-items', table)
    assert "'--new-features' needs features of the new items" in message
    message = error(*command, '--new-features', 'text=x.npy')
    assert "'--new-features' describes the rows of '--new-items'" in message
    message = error(*command, '--new-items', table, '--new-features', 'x.npy')
    assert "'--new-features' needs the form NAME=FILE" in message
    np.save(tmp_path / 'x.npy', np.ones((1, 2), dtype='float32'))
    given = ['--new-items', table, '--new-features', f'text={tmp_path / "x.npy"}']
    assert "'--new-features' of 'text' need the width" in error(*command, *given)
    np.save(tmp_path / 'x.npy', np.ones((2, 3), dtype='float32'))
    assert f"one for each of the rows of '{table}'" in error(*command, *given)
    message = error('recommend', shop / 'seq', '-u', 'u99', *given)
    assert "unknown user id 'u99'" in message  # before anything is encoded
    message = error(*command, '--new-items', tmp_path / 'none.csv')
    assert "'--new-items' is not a file" in message


def test_titles_are_printed_as_they_are(tmp_path: Path) -> None:
    overrides = [*write_shop(tmp_path), 'model.name=Popularity']
    catalogue = tmp_path / 'items.csv'
    catalogue.write_text(catalogue.read_text().replace('Thing, ', 'lamp [/sale] [red]'))
    hellm('pretrain', 'sasrec', *overrides, '--out', tmp_path / 'run')
    output = hellm('recommend', tmp_path / 'run', '--user', 'u03', '-k', 2).stdout
    assert output.count('lamp [/sale] [red]') == 2


def test_all_users_and_some_are_refused(shop: Path, tmp_path: Path) -> None:
    out = ['--all', '--out', tmp_path / 'top.csv']
    for some in (['--user', 'u03'], ['--history', 'p001']):
        message = error('recommend', shop / 'seq', *out, *some)
        assert "'--all' stands for all users" in message
    assert not (tmp_path / 'top.csv').exists()


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_recommend_to_all(shop: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f'top.{ending}'
    output = hellm('recommend', shop / 'seq', '--all', '-k', 3, '--out', out).stdout
    assert f'{3 * NUM_USERS} rows' in output
    if ending == 'csv':
        with out.open(newline='') as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    elif ending == 'jsonl':
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(out).to_pylist()
    assert [row['user'] for row in rows[::3]] == [f'u{u:02d}' for u in range(NUM_USERS)]
    assert {str(row['rank']) for row in rows} == {'1', '2', '3'}


def test_recommend_to_all_shows_progress(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []

    def bar(batches: Any, description: str, progress: bool) -> Any:
        shown.append(progress)
        return batches

    monkeypatch.setattr('hellm_pyg.evaluation.lists.bar', bar)
    hellm('recommend', shop / 'seq', '--all', '--out', tmp_path / 'top.csv')
    assert shown == [True]
    hellm('recommend', shop / 'seq', '-u', 'u03')
    assert shown == [True, False]


def test_recommend_to_a_file_for_some(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / 'some.jsonl'
    hellm('recommend', shop / 'seq', '-u', 'u07', '-k', 4, '-o', out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row['user'], row['rank']) for row in rows] == [
        ('u07', rank) for rank in (1, 2, 3, 4)
    ]
    hellm('recommend', shop / 'seq', '-u', 'u07', '-k', NUM_ITEMS, '-o', out,
          '--include-seen')  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row['item'] for row in rows}) == NUM_ITEMS


def test_what_cannot_be_written_or_read_is_told_first(tmp_path: Path) -> None:
    (tmp_path / 'top.csv').mkdir()
    for user in (['--all'], ['-u', 'u07']):
        message = error('recommend', 'no/run', *user, '-o', tmp_path / 'top.csv')
        assert "'--out' needs to be a file (got the folder" in message
        message = error('recommend', 'no/run', *user, '-o', tmp_path / 'top.txt')
        assert "'--out' needs to end in .parquet" in message
    message = error('recommend', 'no/run', '--history', 'p001', '--history', ' ')
    assert "'--history' needs at least one item id (got ' ')" in message


def test_unknown_ids_in_recommend(shop: Path) -> None:
    assert "unknown user id 'u99'" in error('recommend', shop / 'seq', '-u', 'u99')
    message = error('recommend', shop / 'seq', '--history', 'p001 p999')
    assert "unknown item id 'p999'" in message


def test_lists_shorter_than_k(shop: Path) -> None:
    arguments = ['recommend', shop / 'seq', '-u', 'u01', '-u', 'u02', '-k', NUM_ITEMS]
    result = hellm(*arguments, '--history', 'p001 p004')
    users = re.findall(r'User (\w+)|New user (\d)|│ +(\d+) +│ p\d{3}', result.stdout)
    ranks: dict[str, list[int]] = {}
    name = ''
    for user, new, rank in users:
        if rank:
            ranks[name].append(int(rank))
        else:
            name = user or f'new {new}'
            ranks[name] = []
    assert list(ranks) == ['u01', 'u02', 'new 1']
    assert all(r == list(range(1, len(r) + 1)) for r in ranks.values())
    assert [len(r) < NUM_ITEMS for r in ranks.values()] == [True] * 3
    assert len(ranks['new 1']) == NUM_ITEMS - 2


def test_lists_without_any_item(shop: Path, tmp_path: Path) -> None:
    everything = ' '.join(f'p{item:03d}' for item in range(NUM_ITEMS))
    arguments = ['recommend', shop / 'seq', '-k', 2, '--history', everything]
    output = hellm(*arguments).stdout
    assert output.splitlines() == ['New user 1', 'no item is left to recommend']
    arguments += ['-u', 'u01', '-u', 'u01', '--history', 'p001']
    output = hellm(*arguments).stdout
    found = re.findall(r'^User \w+|^New user \d|^no .*|p\d{3}', output, re.MULTILINE)
    assert found[:1] + found[3:4] == ['User u01'] * 2
    assert found[1:3] == found[4:6]
    assert found[6:9] == ['New user 1', 'no item is left to recommend', 'New user 2']
    assert len(found) == 11
    out = tmp_path / 'new.jsonl'
    hellm(*arguments, '-o', out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row['history'] for row in rows] == [None] * 4 + [2] * 2


@pytest.mark.parametrize(
    ('line', 'ids'),
    [
        (' a  b ', ['a', 'b']),
        ('"red shoe" hat-7', ['red shoe', 'hat-7']),
        ("it's back\\slash", ["it's", 'back\\slash']),
        ('', []),
    ],
)
def test_ids_of_a_history(line: str, ids: list[str]) -> None:
    assert split_ids(line) == ids


def test_recommend_from_data_that_have_moved(shop: Path, tmp_path: Path) -> None:
    arguments = ['recommend', shop / 'seq', '-u', 'u01', '-k', 2]
    moved = [text for text in write_shop(tmp_path) if text.startswith('data.')]
    assert hellm(*arguments, *moved).stdout == hellm(*arguments).stdout
