import gzip
import json
import time
import tracemalloc

import pytest

from hellm_pyg.datasets import amazon_reviews_format as raw
from hellm_pyg.datasets.amazon_releases import RELEASES

from .amazon_files import IMAGE, REVIEWS, product, product_line, raw_files, review


def reviews_of(path, release='2014'):
    report = raw.LineReport(path.name)
    return list(raw.read_reviews(path, RELEASES[release], report)), report


def products_of(path, wanted, release='2014'):
    report = raw.LineReport(path.name)
    found = dict(raw.read_products(path, RELEASES[release], wanted, report))
    return found, report


@pytest.mark.parametrize('release', RELEASES)
@pytest.mark.parametrize('ending', ['.json.gz', '.json'])
def test_releases(tmp_path, release, ending):
    contents = raw_files(release)
    paths = [tmp_path / f'{kind}{ending}' for kind in ('reviews', 'meta')]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(gzip.compress(content) if ending[-1] == 'z' else content)
    rows, report = reviews_of(paths[0], release)
    unit = 1000 if release == '2023' else 1
    assert [(u, i, t // unit) for u, i, t in rows] == REVIEWS
    assert (report.lines, report.bad) == (8, 0)
    found, report = products_of(paths[1], {'B001', 'B002', 'B003'}, release)
    assert list(found) == ['B002', 'B001']
    assert report.bad == 0
    assert found['B001'] == raw.Product(
        "Women's <b>brush</b> B001",
        'Eco',
        ('Beauty', 'Tools & Accessories'),
        'Soft &amp;\nlight' + (' ' if release == '2018' else ''),
        IMAGE,
    )


def test_bad_reviews_are_counted_with_their_lines(tmp_path):
    good = json.dumps(review('2014', 'A1', 'B1', 7))
    lines = {
        2: '{"reviewerID": "A1", "asin": "B1"}',
        3: '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "7"}',
        4: '{"reviewerID": "", "asin": "B1", "unixReviewTime": 7}',
        5: '{"reviewerID": "A1", "asin": null, "unixReviewTime": 7}',
        6: '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1e400}',
        7: '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": true}',
        8: '{"reviewerID": "A1", "asin": "B\\ud800", "unixReviewTime": 7}',
        9: '["A1", "B1", 7]',
        10: '{"reviewerID": "A1", ',
        11: '[' * 100_000,
        12: '{"unixReviewTime": ' + '9' * 5000 + '}',
        13: '<html>',
    }
    path = tmp_path / 'r.json.gz'
    text = '\n'.join([good, *lines.values(), '', good])
    path.write_bytes(gzip.compress(text.encode() + b'\n\xff\xfe\n'))
    rows, report = reviews_of(path)
    assert rows == [('A1', 'B1', 7)] * 2
    assert report.lines == 16
    assert [line for line, _ in report.first_bad] == [*lines, 16]
    assert report.bad == 13
    assert report.first_bad[0] == (2, "no whole number as 'unixReviewTime'")


@pytest.mark.parametrize('release', RELEASES)
def test_times_and_ids_that_nobody_has(tmp_path, release):
    good = 1_400_000_000
    scale = 1 / 1000 if release == '2023' else 1000  # the other unit
    rows = [
        ('A1', 'B1', good),
        ('A1', 'B1', -1),
        ('A1', 'B1', -(10**30)),
        ('A1', 'B1', int(time.time()) + 10 * 86_400),
        ('A1', 'B1', 10**30),
        ('NULL', 'B1', good),
        ('A1', ' nan', good),
        ('A' * 1025, 'B1', good),
        ('A1', 'B1', good),
    ]
    lines = [review(release, *row) for row in rows]
    field = RELEASES[release].time
    lines[-1][field] = int(lines[-1][field] * scale)
    zero = {**lines[0], field: 0}
    path = tmp_path / 'r.json'
    path.write_text('\n'.join(map(json.dumps, [*lines, zero])))
    found, report = reviews_of(path, release)
    assert [(user, item) for user, item, _ in found] == [('A1', 'B1')]
    assert [line for line, _ in report.first_bad] == list(range(2, 11))
    reasons = dict(report.first_bad)
    assert reasons[2] == reasons[10] == f"not after 1970: '{field}'"
    assert reasons[4] == f"in the future: '{field}'"
    assert reasons[6] == f"no '{RELEASES[release].user}'"
    unit = 'seconds, not milliseconds' if release == '2023' else 'in the future'
    assert reasons[9] == f"{unit}: '{field}'"


def test_products_are_never_run_as_code(tmp_path):
    path = tmp_path / 'meta.json.gz'
    trap = tmp_path / 'trap'
    lines = [
        f"{{'asin': 'B1', 'title': open({str(trap)!r}, 'w').write('x')}}",
        "{'asin': 'B1', 'title': 1 + __import__('os').system('true')}",
        "{'asin': 'B1', 'title': 'a' * 10}",
        "{'asin': 'B1', 'title': " + '(' * 5000 + ')' * 5000 + '}',
        "{'asin': 'B1', 'title': " + '-' * 100_000 + '1}',
        r"{'asin': 'B1', 'title': 'back\slash'}",
        "{'asin': 'B1', 'title': 'again'}",
    ]
    path.write_bytes(gzip.compress('\n'.join(lines).encode()))
    found, report = products_of(path, {'B1'})
    assert not trap.exists()
    assert found['B1'].title == r'back\slash'
    assert (report.bad, report.repeated) == (5, 1)


def test_fields_of_other_types_are_missing(tmp_path):
    record = {'asin': 'B1', 'title': 7, 'categories': 'x', 'imUrl': ['u'], 'brand': []}
    path = tmp_path / 'meta.json'
    odd = {'asin': 'B2', 'categories': [[1, 'Toys']], 'images': ['x', {'large': 3}]}
    odd['description'] = [1, 'a']
    text = f'{record!r}\n{odd!r}\n{ {"asin": "B3"}!r}\n'
    path.write_text(text)
    found, report = products_of(path, {'B1', 'B2', 'B3'})
    assert report.bad == 0
    assert found['B1'] == raw.Product('', '', (), '', 'u')
    assert found['B2'] == raw.Product('', '', ('Toys',), 'a', '')
    assert found['B3'] == raw.Product('', '', (), '', '')


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'not gzip', 'tail'])
def test_damaged_gz(tmp_path, damage):
    path = tmp_path / 'r.json.gz'
    rows = [(f'A{i}', f'B{i % 97}', i * 7919 % 10_007) for i in range(2000)]
    content = gzip.compress(raw_files('2014', rows)[0])
    half = len(content) // 2
    path.write_bytes(
        {
            'cut': content[:half],
            'flipped': content[:half]
            + bytes([content[half] ^ 255]) * 9
            + content[half + 9 :],
            'not gzip': b'<html>' * 99,
            'tail': content + b'tail',
        }[damage]
    )
    with pytest.raises(ValueError, match=r"r\.json\.gz' is damaged or cut off.*delete"):
        reviews_of(path)


def test_long_lines_are_passed_over_in_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, 'MAX_LINE', 10_000)
    good = json.dumps(review('2014', 'A1', 'B1', 7)).encode()
    path = tmp_path / 'r.json.gz'
    with gzip.open(path, 'wb', compresslevel=1) as file:
        file.write(good + b'\n{"a": "')
        for _ in range(100):
            file.write(b'x' * 100_000)
        file.write(b'"}\n' + good + b'\n')
        for _ in range(5000):
            file.write(good + b'\n')
    report = raw.LineReport(path.name)
    tracemalloc.start()
    count = sum(1 for _ in raw.read_reviews(path, RELEASES['2014'], report))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5002
    assert report.first_bad == [(2, 'longer than 10000 bytes')]
    assert peak < 2_000_000


def test_large_literals_are_not_parsed(tmp_path):
    pieces = {'lists': '[],', 'numbers': '1,', 'minus': '-', 'braces': '{'}
    lines = [
        "{'asin': 'B1', 'title': [" + piece * (raw.MAX_LITERAL // len(piece)) + ']}'
        for piece in pieces.values()
    ]
    path = tmp_path / 'meta.json.gz'
    path.write_bytes(gzip.compress('\n'.join(lines).encode()))
    tracemalloc.start()
    found, report = products_of(path, {'B1'})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert report.bad == len(lines)
    assert all(reason.startswith('longer than') for _, reason in report.first_bad)
    assert peak < 20_000_000


def test_gzip_bomb_is_read_in_constant_memory(tmp_path):
    size = 25 * raw.MAX_LINE
    path = tmp_path / 'meta.json.gz'
    with gzip.open(path, 'wb', compresslevel=9) as file:
        for _ in range(25):
            file.write(b' ' * raw.MAX_LINE)
    assert path.stat().st_size < size / 500
    tracemalloc.start()
    found, report = products_of(path, {'B1'})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert (report.lines, report.bad) == (1, 1)
    assert peak < 8 * raw.MAX_LINE


def test_other_products_are_not_parsed(tmp_path, monkeypatch):
    parsed = []
    parse = raw.ast.literal_eval
    monkeypatch.setattr(
        raw.ast, 'literal_eval', lambda text: parsed.append(text) or parse(text)
    )
    items = [f'B{i:03}' for i in range(50)]
    lines = [product_line('2014', product('2014', item)) for item in items]
    path = tmp_path / 'meta.json'
    path.write_text('\n'.join(lines))
    found, _ = products_of(path, {'B007'})
    assert list(found) == ['B007']
    assert len(parsed) == 1
