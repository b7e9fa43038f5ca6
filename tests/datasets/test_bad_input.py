"""What people give by mistake: it is read as it was meant, or one message says why not.

A message names the file, the row or column, and what to do; no later step finds
anything of a failed reading.
"""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hellm_pyg.datasets import InteractionFiles

DAY = 86_400
MAY = 1_714_521_600  # 2024-05-01
HEADER = 'user_id,item_id\n'
TIMED = 'user_id,item_id,t\n'


@dataclass
class Case:
    """An input, and either the message that it gives or what is read from it."""

    name: str
    content: str | bytes | Callable[[Path], None]
    says: str = ''
    users: list[Any] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    file: str = 'log.csv'


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(pa.table(columns), path)


def without_footer(path: Path) -> None:
    table(user_id=[1], item_id=[2])(path)
    path.write_bytes(path.read_bytes()[:-16])


def columns_of_one_name(path: Path) -> None:
    names = ['user_id', 'item_id', 'user_id']
    parquet.write_table(pa.table([[1], [2], [3]], names), path)


def long_line(path: Path) -> None:
    with path.open('wb') as file:
        file.write(b'user_id,item_id\n1,2\n3,"')
        for _ in range(100):
            file.write(b'x' * (1 << 20))
        file.write(b'"\n')


def long_json_line(path: Path) -> None:
    with path.open('wb') as file:
        file.write(b'{"user_id": 1, "item_id": 2}\n{"user_id": 1, "item_id": "')
        for _ in range(100):
            file.write(b'x' * (1 << 20))
        file.write(b'"}\n')


def cut(text: str) -> bytes:
    whole = gzip.compress(text.encode())
    return whole[: len(whole) // 2]


MANY = ''.join(f'{7919 * i % 10007},{i}\n' for i in range(20_000))
RECORDS = ''.join(f'{{"user_id":{7919 * i % 10007},"item_id":{i}}}\n' for i in range(9))
# Many quotes that are closed, then one that is not.
QUOTED = HEADER + '"a",1\n"b",2\nc,"3\nd,4\n'
GIVEN = {'user': 'user_id', 'item': 'item_id', 'time': 't'}

CASES = [
    Case('semicolons', 'user_id;item_id\na;1\n', users=['a'], items=[1]),
    Case('tabs in .csv', 'user_id\titem_id\na\t1\n', users=['a'], items=[1]),
    Case('commas in .tsv', HEADER + '"a",1\n', users=['a'], items=[1], file='log.tsv'),
    Case(
        'two delimiters',
        'user_id;item_id|x\na;1|2\n',
        says=r"'{file}' needs at least two columns .got 'user_id;item_id|x'.*by commas",
    ),
    Case(
        'latin-1',
        (HEADER + 'a,1\nb,2\ncafé,2\n').encode('latin-1'),
        says=r"'{file}' cannot be read.*line 4 is not UTF-8 .byte 0xE9.*iconv",
    ),
    Case(
        'latin-1 names',
        'user_id,prénom\n1,2\n'.encode('latin-1'),
        says=r"'{file}'.*line 1 is not UTF-8 .byte 0xE9.*iconv -f WINDOWS-1252",
    ),
    Case('UTF-16', HEADER.encode('utf-16'), says="'{file}'.*it is UTF-16; save it as"),
    Case(
        'UTF-16 without a mark',
        HEADER.encode('utf-16-le'),
        says=r"'{file}' cannot be read.*zero bytes, as UTF-16.*iconv",
    ),
    Case('BOM', '\ufeff' + HEADER + 'a,1\n', users=['a'], items=[1]),
    Case('BOM in text', '\ufeffa 1 2\n', users=['a'], items=[1, 2], file='log.txt'),
    Case(
        'BOM in JSON',
        '\ufeff{"user_id": 3, "item_id": 4}\n',
        users=[3],
        items=[4],
        file='log.jsonl',
    ),
    Case(
        'quoted newlines',
        'user_id,note,item_id\r\na,"one\r\ntwo, ""three""",1\r\nb,,2\r\n',
        users=['a', 'b'],
        items=[1, 2],
    ),
    Case('open quote', QUOTED, says="'{file}'.*the row of line 4 opens a quote"),
    Case(
        'open quote before other columns',
        HEADER + 'a,1\n"b,2\nc,3\n',
        says="'{file}' cannot be read.*row 2 has 1 columns instead of 2.*close every",
    ),
    Case(
        'line break in an id',
        HEADER + 'a,1\nb,"2\n3"\n',
        says=r"'{file}': column 'item_id' has a line break within an id.* row 2.*mend",
    ),
    Case(
        'uneven rows',
        HEADER + 'a,1\nb,2,3\n',
        says="'{file}' cannot be read.*row 2 has 3 columns instead of 2.*in quotes",
    ),
    Case(
        'mixed ids in CSV',
        HEADER + '7,x1\n8,2\nu9,007\n',
        users=['7', '8', 'u9'],
        items=['007', '2', 'x1'],
    ),
    Case(
        'mixed ids in JSON',
        RECORDS + '{"user_id": "u9", "item_id": 3}\n',
        says="'{file}'.*column 'user_id' is a number in line 1 and text in line 10 "
        ".got 'u9'.; write one of both throughout",
        file='log.jsonl',
    ),
    Case(
        'fractional ids',
        table(user_id=[1.0, 2.5], item_id=[1, 2]),
        says="'{file}': column 'user_id' needs integers or text as ids in row 2 .got 2",
        file='log.parquet',
    ),
    Case(
        'missing column',
        'user_id,itemid,year\n1,2,3\n',
        says="'item' names the column 'product', which '{file}' does not have .its "
        "columns: 'user_id', 'itemid', 'year'",
        arguments={'item': 'product'},
    ),
    Case(
        'missing header',
        'u1,10\nu2,20\n',
        says="'user' names the column 'user_id', which '{file}' does not have .*'u1', "
        "'10'.; the first line needs to hold the names of the columns: add it",
    ),
    Case(
        'duplicate column',
        'user_id,item_id,user_id\n1,2,3\n',
        says="'{file}' has the column 'user_id' 2 times .*; rename all but one",
    ),
    Case(
        'duplicate column in Parquet',
        columns_of_one_name,
        says="'{file}' has the column 'user_id' 2 times .*; rename all but one",
        file='log.parquet',
    ),
    Case(
        'duplicate column in JSON',
        '{"user_id": 1, "item_id": 2, "user_id": 3}\n',
        says="'{file}' cannot be read.*line 1 is not JSON .the name 'user_id' stands "
        'in it twice.; mend or remove it',
        file='log.jsonl',
    ),
    Case('column without a name', ',user_id,item_id\n0,a,1\n', users=['a'], items=[1]),
    Case(
        'one column twice',
        HEADER + '1,2\n',
        says="'user' and 'item' need two columns of '{file}' .got 'user_id' for both",
        arguments={'item': 'user_id'},
    ),
    Case(
        'two columns fit',
        'customer,buyer,item_id\n1,2,3\n',
        says="'user' names the column 'user_id', which '{file}' does not have .its "
        "columns: 'customer', 'buyer', 'item_id'",
    ),
    Case(
        'NaN ids',
        table(user_id=[1.0, float('nan'), 2.0], item_id=[1, 2, 3]),
        says="'{file}': column 'user_id' is missing a value in row 2; mend .*'drop'",
        file='log.parquet',
    ),
    Case(
        'NaN ids in text',
        HEADER + '1,2\n1,NaN\n',
        says="'{file}': column 'item_id' .* row 2 .got 'NaN', .*; mend .*'drop'",
    ),
    Case(
        'NaN ids left out',
        HEADER + '1,2\n1,NaN\nNone,3\n',
        users=[1],
        items=[2],
        arguments={'bad_rows': 'drop'},
    ),
    Case(
        'empty ids',
        HEADER + '1,2\n,3\n',
        says="'{file}': column 'user_id' is missing a value in row 2; mend .*'drop'",
    ),
    Case(
        'blank ids',
        HEADER + '1,2\n1,3\n1,"  "\n',
        says="'{file}': column 'item_id' .* row 3 .got '  ', .*; mend .*'drop'",
    ),
    Case(
        'no usable row',
        HEADER + ',2\n1,\n',
        says="'{file}' has no row that can be used .missing user 1, missing item 1",
        arguments={'bad_rows': 'drop'},
    ),
    Case(
        'seconds',
        TIMED + f'1,1,{MAY}\n1,2,{MAY + DAY}\n',
        users=[1],
        items=[1, 2],
        times=[MAY, MAY + DAY],
        arguments=GIVEN,
    ),
    Case(
        'milliseconds',
        TIMED + f'1,1,{MAY}123\n1,2,{MAY + DAY}999\n',
        users=[1],
        items=[1, 2],
        times=[MAY, MAY + DAY],
        arguments=GIVEN,
    ),
    Case(
        'ISO text',
        TIMED + '1,1,2024-05-01T02:00:00+02:00\n1,2,2024-05-02\n',
        users=[1],
        items=[1, 2],
        times=[MAY, MAY + DAY],
        arguments=GIVEN,
    ),
    Case(
        'seconds among milliseconds',
        TIMED + f'1,1,{MAY}000\n1,2,{MAY}\n1,3,{MAY}000\n',
        says="'{file}': column 't' mixes units: most rows are milliseconds since 1970, "
        'row 2 is seconds .got 17145.*; write all of them in one unit',
        arguments=GIVEN,
    ),
    Case(
        'unreadable time',
        TIMED + '1,1,2024-05-01\n1,2,yesterday\n',
        says="'{file}': column 't' needs a number or an ISO 8601 time in row 2 .got "
        "'yesterday'.; mend the row, remove it, or .*bad_rows='drop'",
        arguments=GIVEN,
    ),
    Case(
        'empty time',
        TIMED + f'1,1,{MAY}\n1,2,\n',
        says="'{file}': column 't' is missing a value in row 2; mend the row",
        arguments=GIVEN,
    ),
    Case(
        'negative time',
        TIMED + f'1,1,{MAY}\n1,2,-1\n',
        says="'{file}': column 't' needs times after 1970-01-01 in row 2 .got -1.; "
        'mend the row',
        arguments=GIVEN,
    ),
    Case(
        'future time',
        TIMED + '1,1,2024-05-01\n1,2,9999-12-31\n',
        says="'{file}': column 't' has a time in the future in row 2 .got 9999-12-31T",
        arguments=GIVEN,
    ),
    Case(
        'bad times left out',
        TIMED + f'1,1,{MAY}\n1,2,-1\n1,3,253402214400\n1,4,x\n1,5,{MAY + 1}\n',
        users=[1],
        items=[1, 5],
        times=[MAY, MAY + 1],
        arguments=GIVEN | {'bad_rows': 'drop'},
    ),
    Case('one column', 'user_id\n1\n', says="'{file}' needs at least two columns .got"),
    Case(
        'one column of text',
        '1\n2\n',
        says="'{file}' needs lines of 'user item item ...' .got a single column",
        file='log.txt',
    ),
    Case('names alone', HEADER, says="'{file}' has no rows"),
    Case(
        'a line of 100 MB',
        long_line,
        says="'{file}' cannot be read.*line 3 is longer than 16 MiB; split it .*quote",
    ),
    Case(
        'a line of 100 MB in JSON',
        long_json_line,
        says="'{file}' cannot be read.*line 2 is longer than 16 MiB; split it",
        file='log.jsonl',
    ),
    *(
        Case(
            f'{name} cut in the middle',
            cut(text),
            says="'{file}' cannot be read.*gzip stream is cut off.*; copy or download",
            file=name,
        )
        for name, text in (
            ('log.csv.gz', HEADER + MANY),
            ('log.jsonl.gz', RECORDS),
            ('log.txt.gz', MANY.replace(',', ' ')),
        )
    ),
    Case(
        'JSON cut in the middle',
        RECORDS[:-12],
        says="'{file}' cannot be read.*line 9 is not JSON .*; mend or remove it",
        file='log.jsonl',
    ),
    Case(
        'JSON in one list',
        json.dumps([{'user_id': 1, 'item_id': 2}]),
        says=r"'{file}' cannot be read.*line 1 needs an object, .* 'jq -c .\[\]'",
        file='log.json',
    ),
    Case(
        'Parquet without a footer',
        without_footer,
        says="'{file}' cannot be read.*footer is missing.*; write, copy or download",
        file='log.parquet',
    ),
    Case(
        'features of another catalogue',
        HEADER + '1,2\n1,3\n',
        says="'features' of 'text' .'.*x.npy'. needs 2 rows, one for each of the "
        "distinct items of '{file}' .*.got 3.",
        arguments={'features': {'text': 'x.npy'}},
    ),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / 'x.npy', np.ones((3, 2)))
    path, root = tmp_path / case.file, tmp_path / 'cache'
    if callable(case.content):
        case.content(path)
    elif isinstance(case.content, str):
        path.write_text(case.content, encoding='utf-8', newline='')
    else:
        path.write_bytes(case.content)
    if not case.says:
        dataset = InteractionFiles(root, path, **case.arguments)
        assert dataset.ids.users == case.users
        assert dataset.ids.items == case.items
        if case.times:
            assert dataset[0]['user', 'interacts', 'item'].time.tolist() == case.times
        return
    with pytest.raises(
        ValueError, match=case.says.replace('{file}', str(path))
    ) as info:
        InteractionFiles(root, path, **case.arguments)
    message = str(info.value)
    assert '\n' not in message
    assert len(message) < 500 + 2 * len(str(path))
    left = [entry for entry in (root / 'processed').rglob('*') if entry.is_file()]
    assert not left, 'a failed reading left something behind'


def test_a_long_line_is_refused_in_little_memory_and_time(tmp_path):
    path = tmp_path / 'log.csv'
    long_line(path)
    before, began = pa.total_allocated_bytes(), time.perf_counter()
    tracemalloc.start()
    with pytest.raises(ValueError, match='longer than 16 MiB'):
        InteractionFiles(tmp_path / 'cache', path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert pa.default_memory_pool().max_memory() < 1 << 30
    assert time.perf_counter() - began < 30


def test_bad_input_of_an_item_table(tmp_path):
    log, items = tmp_path / 'log.csv', tmp_path / 'items.csv'
    log.write_text(HEADER + '1,2\n')
    for text, says in (
        ('item_id,title\n2,a\n,b\n', 'is missing a value in row 2; fill in the id'),
        ('item_id,title\n2,a\n2,b\n', '2 in rows 1 and 2.; drop one'),
        ('item_id,title\n2,"a\n3,b\n', 'row of line 2 opens a quote'),
    ):
        items.write_text(text)
        with pytest.raises(ValueError, match=f"'{items}'.*{says}"):
            InteractionFiles(tmp_path / 'cache', log, items=items)
    # The index that pandas writes is no column of the catalogue.
    items.write_text(',item_id,title,year\n0,2,"a\nb",7\n')
    data = InteractionFiles(tmp_path / 'cache', log, items=items)[0]
    assert data['item'].title == ['a\nb']
    assert data['item'].table == {'year': [7]}
