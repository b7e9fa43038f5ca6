from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import table2

# Users, items, interactions, those that the article counts, and its sparsity.
COUNTS = {
    'sports': (35_598, 18_357, 296_337, 260_739, '99.9547 %', '99.960 %'),
    'beauty': (22_363, 12_101, 198_502, 176_139, '99.9266 %', '99.935 %'),
    'toys': (19_412, 11_924, 167_597, 148_185, '99.9276 %', '99.936 %'),
}


def test_counts_of_a_small_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'amazon_beauty').mkdir()
    # Two users, five items; the last item of each is the test, item 5 comes once.
    (tmp_path / 'amazon_beauty' / 'sequences.txt').write_text('1 1 2 3 4\n2 2 1 3 5\n')
    out = tmp_path / 'table2.json'
    monkeypatch.setenv('HELLM_DATA', '/nowhere')
    table2.main(['beauty', '--data', str(tmp_path), '--out', str(out)])
    row = json.loads(out.read_text())['beauty']
    assert (row['users'], row['items'], row['interactions']) == (2, 5, 8)
    assert row['sparsity'] == pytest.approx(1 - 8 / 10)
    assert (row['training'], row['counted']) == (4, 6)
    assert row['sparsity_counted'] == pytest.approx(1 - 6 / 10)
    assert row['cold_items'] == 3
    head, _, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split(' | '), line.split(' | '), strict=True))
    assert cells['sparsity'] == '20.0000 %'
    assert cells['sparsity so'] == '40.000 %'
    assert cells['as the article counts'] == '6'


@pytest.mark.parametrize('name', COUNTS)
def test_counts_of_the_article(name: str) -> None:
    if not os.environ.get('HELLM_DATA'):
        pytest.skip('HELLM_DATA is not set')
    row = table2.counts(name)
    users, items, total, counted, sparsity, printed = COUNTS[name]
    assert (row['users'], row['items']) == (users, items)
    assert (row['interactions'], row['counted']) == (total, counted)
    assert row['training'] == total - 2 * users
    text = table2.render({name: row})
    assert f' {total:,} | {sparsity} | {counted:,} | {printed} ' in text
