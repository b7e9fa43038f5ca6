import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hellm_pyg.data.split import fold_in
from hellm_pyg.datasets import AmazonReviews, InteractionFiles
from hellm_pyg.datasets.amazon_releases import RELEASES
from hellm_pyg.transforms import LeaveOneOut

from .amazon_files import EDGES, IMAGE, REVIEWS, file_names, raw_files, write_raw
from .test_interactions import edges_of

TEXT = "Women's brush B001 Eco Beauty Tools & Accessories Soft & light"


def load(root, release='2014', contents=None, **kwargs):
    write_raw(root, release, 'Beauty', contents or raw_files(release))
    return AmazonReviews(root, release=release, **{'min_count': 0, **kwargs})


def report_of(dataset) -> dict:
    return json.loads(Path(dataset.processed_paths[2]).read_text())


@pytest.mark.parametrize('release', RELEASES)
def test_releases(tmp_path, release):
    dataset = load(tmp_path, release)
    data = dataset[0]
    assert edges_of(data) == EDGES
    assert dataset.ids.users == ['A1', 'A2', 'A3']
    assert dataset.ids.items == ['B001', 'B002', 'B003']
    assert data.name == 'Beauty'
    titles = ["Women's brush B001", "Women's brush B002", '']
    assert data['item'].title == dataset.ids.titles == titles
    table = data['item'].table
    assert table == {
        'brand': ['Eco', 'Eco', ''],
        'category': ['Beauty > Tools & Accessories'] * 2 + [''],
        'description': ['Soft & light'] * 2 + [''],
        'text': [TEXT, TEXT.replace('B001', 'B002'), ''],
        'image_url': [IMAGE, IMAGE, ''],
    }
    assert dataset.report == report_of(dataset)
    assert dataset.report['items without metadata'] == 1
    assert dataset.report['dropped'] == {'repeated': 0, 'below min_count': 0}
    split = LeaveOneOut()(data)
    assert split['user'].test_item.tolist() == [1, -1, 0]
    assert fold_in(split)['user', 'item'].edge_index.size(1) == 6


def test_downloads(server, tmp_path):
    for name, content in zip(
        file_names('2014', 'Toys_and_Games'), raw_files('2014'), strict=True
    ):
        server.add(f'/mirror/{name}', gzip.compress(content, mtime=0))
    bases = [f'{server.url}/gone', f'{server.url}/mirror/']
    arguments = {'name': 'Toys', 'base_urls': bases, 'min_count': 0}
    data = AmazonReviews(tmp_path, **arguments)[0]
    assert edges_of(data) == EDGES
    assert data.name == 'Toys_and_Games'
    asked = len(server.requests)
    assert asked == 4
    AmazonReviews(tmp_path, **arguments)
    assert len(server.requests) == asked


def test_download_that_fails_leaves_nothing_to_read(server, tmp_path):
    reviews, products = file_names('2014', 'Beauty')
    contents = [gzip.compress(content, mtime=0) for content in raw_files('2014')]
    server.add(f'/{reviews}', contents[0])
    server.add(f'/{products}', contents[1][:-20])
    with pytest.raises(ValueError, match=f"{products}' cannot be downloaded"):
        AmazonReviews(tmp_path, base_urls=server.url, min_count=0)
    assert os.listdir(tmp_path / 'raw' / '2014') == [reviews]
    assert not (tmp_path / 'processed').exists()
    server.add(f'/{products}', contents[1])
    dataset = AmazonReviews(tmp_path, base_urls=server.url, min_count=0)
    assert edges_of(dataset[0]) == EDGES
    assert len(server.asked(f'/{reviews}')) == 1


def test_damaged_file_is_named_and_leaves_nothing(tmp_path):
    write_raw(tmp_path, '2014', 'Beauty', raw_files('2014'))
    path = tmp_path / 'raw' / '2014' / 'meta_Beauty.json.gz'
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"meta_Beauty\.json\.gz' is damaged or cut"):
        AmazonReviews(tmp_path, min_count=0)
    assert os.listdir(tmp_path / 'processed') == []


def test_decompressed_files(tmp_path):
    folder = tmp_path / 'raw' / '2014'
    folder.mkdir(parents=True)
    names = file_names('2014', 'Beauty')
    for name, content in zip(names, raw_files('2014'), strict=True):
        (folder / name.removesuffix('.gz')).write_bytes(content)
    assert edges_of(AmazonReviews(tmp_path, min_count=0)[0]) == EDGES


def test_byte_for_byte(tmp_path):
    folders = []
    for name in ('one', 'two'):
        dataset = load(tmp_path / name)
        folders.append(Path(dataset.processed_dir))
    assert folders[0].name == folders[1].name
    for file in ('data.pt', 'ids.json', 'report.json'):
        one, two = ((folder / file).read_bytes() for folder in folders)
        assert one == two, file


def test_cache(tmp_path, monkeypatch):
    first = load(tmp_path)
    stamp = Path(first.processed_paths[0]).stat().st_mtime_ns
    again = load(tmp_path)
    assert Path(again.processed_paths[0]).stat().st_mtime_ns == stamp
    other = load(tmp_path, template='{title}')
    assert other.processed_dir != first.processed_dir
    assert other[0]['item'].table['text'][0] == "Women's brush B001"
    assert other[0].fingerprint == first[0].fingerprint
    shorter = load(tmp_path, contents=raw_files('2014', REVIEWS[:-1]))
    assert edges_of(shorter[0]) == EDGES[:6] + EDGES[7:]
    Path(again.processed_paths[0]).write_bytes(b'broken')
    with pytest.raises(ValueError, match='force_reload'):
        load(tmp_path)
    assert edges_of(load(tmp_path, force_reload=True)[0]) == EDGES


def test_releases_do_not_take_each_others_files(tmp_path):
    fingerprints = {load(tmp_path, r)[0].fingerprint for r in ('2014', '2018')}
    assert len(fingerprints) == 1
    assert sorted(os.listdir(tmp_path / 'raw')) == ['2014', '2018']


def test_repeated_reviews_and_core(tmp_path):
    rows = [*REVIEWS, ('A1', 'B001', 90), ('A9', 'B001', 5), ('A1', 'B009', 5)]
    dataset = load(tmp_path, contents=raw_files('2014', rows), min_count=2)
    data = dataset[0]
    assert dataset.ids.users == ['A1', 'A2', 'A3']
    assert edges_of(data)[:3] == [(0, 2, 50), (0, 0, 90), (0, 1, 100)]
    assert dataset.report['dropped'] == {'repeated': 1, 'below min_count': 2}
    with pytest.raises(ValueError, match=r"'min_count' leaves no .*got 5, for 10"):
        load(tmp_path, contents=raw_files('2014', rows), min_count=5)


def test_bad_lines_are_reported(tmp_path, caplog):
    reviews, products = raw_files('2014')
    contents = (b'{"asin"\n' + reviews, products + b"{'asin': B001}\n[]\n")
    dataset = load(tmp_path, contents=contents)
    assert edges_of(dataset[0]) == EDGES
    first, second = dataset.report['files']
    assert (first['name'], first['lines'], first['bad']) == (
        'reviews_Beauty_5.json.gz',
        9,
        1,
    )
    assert first['first_bad'][0][0] == 1
    assert [line for line, _ in second['first_bad']] == [4, 5]
    assert 'reviews_Beauty_5.json.gz: 1 of 9 lines hold no record' in caplog.text
    assert '1 of 3 products are not in it' in caplog.text


def test_files_that_hold_nothing_of_use(tmp_path):
    reviews, products = raw_files('2014')
    with pytest.raises(ValueError, match=r'no review among its 8 lines.*user_id'):
        load(tmp_path, '2023', (reviews, products))
    with pytest.raises(ValueError, match=r'none of the 3 products.*another category'):
        load(tmp_path, '2014', (reviews, raw_files('2014', items=['B7'])[1]))
    with pytest.raises(ValueError, match='no review among its 0 lines'):
        load(tmp_path, '2018', (b'', products))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'release': '2016'}, "'release' needs to be one of 2014, 2018, 2023"),
        ({'name': '../x'}, "'name' needs letters"),
        ({'name': ''}, "'name' needs letters"),
        ({'min_count': -1}, "'min_count' needs to be at least 0"),
        ({'template': '{price}'}, "'template' may name title, brand"),
        ({'base_urls': []}, "'base_urls' needs at least one"),
        ({'base_urls': ['file:///tmp']}, 'only http and https'),
    ],
)
def test_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        AmazonReviews(tmp_path, **kwargs)


def test_images(server, tmp_path):
    pytest.importorskip('PIL', reason='needs Pillow')
    from .test_images import picture

    url = server.add('/I/51.jpg', picture())
    contents = list(raw_files('2014', image=url))
    contents[1] = contents[1].replace(url.encode(), f'{server.url}/gone'.encode(), 1)
    dataset = load(tmp_path, contents=contents, images=True)
    item = dataset[0]['item']
    assert item.image_missing.tolist() == [False, True, True]
    assert item.table['image'][1:] == ['', '']
    assert (dataset.image_folder / item.table['image'][0]).is_file()
    counts = {'new': 1, 'no address': 1, 'not found': 1}
    assert dataset.report['images']['counts'] == counts
    asked = len(server.requests)
    assert torch.equal(
        load(tmp_path, contents=contents, images=True)[0]['item'].image_missing,
        item.image_missing,
    )
    assert len(server.requests) == asked
    server.add('/gone', picture())
    again = load(tmp_path, contents=contents, images=True, force_reload=True)
    assert again[0]['item'].image_missing.tolist() == [False, False, True]
    assert len(server.asked('/I/51.jpg')) == 1


def test_images_that_a_busy_server_has_refused_are_tried_again(server, tmp_path):
    pytest.importorskip('PIL', reason='needs Pillow')
    from .test_images import picture

    later = (429, {'Retry-After': '9999'})
    url = server.add('/busy.jpg', picture(), first=[later] * 2)
    contents = list(raw_files('2014', image=url))
    contents[1] = contents[1].replace(url.encode(), f'{server.url}/gone'.encode(), 1)

    def missing():
        item = load(tmp_path, contents=contents, images=True)[0]['item']
        return item.image_missing.tolist()

    assert missing() == missing() == [True, True, True]
    assert missing() == missing() == [False, True, True]
    assert len(server.asked('/busy.jpg')) == 3
    assert len(server.asked('/gone')) == 1


@pytest.mark.parametrize(
    'content', ['{"ima', '[]', '{}', '{"images": null}', '{"images": {"again": 0}}']
)
def test_a_damaged_report_is_named(tmp_path, content):
    pytest.importorskip('PIL', reason='needs Pillow')
    contents = raw_files('2014', image='')
    for options in ({'images': True}, {}):
        dataset = load(tmp_path, contents=contents, **options)
        assert isinstance(dataset.report, dict)
        if options or content in ('{"ima', '[]'):
            Path(dataset.processed_paths[2]).write_text(content)
            with pytest.raises(ValueError, match=r'report\.json.*force_reload=True'):
                load(tmp_path, contents=contents, **options)


def test_known_hashes(server, tmp_path):
    names = file_names('2014', 'Beauty')
    bodies = [gzip.compress(content, mtime=0) for content in raw_files('2014')]
    for name, body in zip(names, bodies, strict=True):
        server.add(f'/good/{name}', body)
        server.add(f'/forged/{name}', gzip.compress(b'{}', mtime=0))
    hashes = [hashlib.sha256(body).hexdigest() for body in bodies]
    sha256 = dict(zip(names, hashes, strict=True))
    mirrors = [f'{server.url}/{name}' for name in ('forged', 'good')]
    dataset = AmazonReviews(tmp_path, base_urls=mirrors, min_count=0, sha256=sha256)
    assert edges_of(dataset[0]) == EDGES
    with pytest.raises(ValueError, match=rf"{names[0]}' has the SHA-256 .*delete it"):
        AmazonReviews(tmp_path, min_count=0, sha256={names[0]: hashes[1]})
    with pytest.raises(ValueError, match=r"'sha256' needs to name reviews_.*'x.gz'"):
        AmazonReviews(tmp_path, min_count=0, sha256={'x.gz': hashes[0]})
    with pytest.raises(ValueError, match="'sha256' needs 64 hexadecimal digits"):
        AmazonReviews(tmp_path, min_count=0, sha256={names[0]: 'abc'})


def test_length_that_the_server_has_said_is_checked(server, tmp_path, monkeypatch):
    monkeypatch.setattr('hellm_pyg.datasets.download.sleep', lambda seconds: None)
    for name, content in zip(
        file_names('2014', 'Beauty'), raw_files('2014'), strict=True
    ):
        body = gzip.compress(content, mtime=0)
        server.add(f'/{name}', body, length=len(body) + 7, ranges=False)
    with pytest.raises(ValueError, match='7 bytes before the end'):
        AmazonReviews(tmp_path, base_urls=server.url, min_count=0)
    assert not (tmp_path / 'processed').exists()


EXPORT = """
from hellm_pyg.datasets import AmazonReviews
from hellm_pyg.datasets.card import write_card
from hellm_pyg.datasets.export import export_tables

dataset = AmazonReviews(root, 'Beauty', min_count=0)
paths = export_tables(dataset[0], dataset.ids, out)
write_card(out, dataset[0], dataset.provenance)
"""


def export(out, root):
    names = {'out': out, 'root': root}
    exec(EXPORT, names)
    return names['dataset'], names['paths']


def test_tables_for_recipes(tmp_path):
    write_raw(tmp_path, '2014', 'Beauty', raw_files('2014'))
    dataset, paths = export(tmp_path / 'out', tmp_path)
    read = InteractionFiles(
        tmp_path / 'cache', paths['interactions'], time='time', items=paths['items']
    )
    assert read[0].fingerprint == dataset[0].fingerprint
    assert read[0]['item'].table == dataset[0]['item'].table
    assert read.ids == dataset.ids


def test_card(tmp_path):
    reviews, products = raw_files('2014', [*REVIEWS, ('A1', 'B001', 90)])
    contents = (b'{"asin"\n' + reviews, products + b'[]\n')
    write_raw(tmp_path, '2014', 'Beauty', contents)
    export(tmp_path / 'out', tmp_path)
    card = json.loads((tmp_path / 'out' / 'data_card.json').read_text())
    assert card['source'] == 'Amazon reviews of 2014: Beauty'
    assert card['counts']['interactions'] == len(REVIEWS)
    assert card['dropped'] == {
        'lines of reviews_Beauty_5.json.gz: no record': 1,
        'reviews: repeated': 1,
        'reviews: below min_count': 0,
        'lines of meta_Beauty.json.gz: no record': 1,
        'lines of meta_Beauty.json.gz: repeated': 0,
    }
    raw = (tmp_path / 'raw' / '2014' / 'meta_Beauty.json.gz').read_bytes()
    assert card['files'][1]['sha256'] == hashlib.sha256(raw).hexdigest()
    assert card['template'] == '{title} {brand} {category} {description}'
    assert card['columns']['text'] == 2
    assert '1 items are not in meta_Beauty.json.gz.' in card['notes']
    assert 'the first is line 1 (' in card['notes'][0]


def test_tables_and_card_are_the_same_bytes_everywhere(tmp_path):
    one, two = (tmp_path / name for name in ('one', 'two'))
    for folder in (one, two):
        write_raw(folder, '2014', 'Beauty', raw_files('2014'))
    export(one / 'out', one)
    out, root = str(two / 'out'), str(two)
    code = f'out, root = {out!r}, {root!r}' + EXPORT
    environment = {**os.environ, 'PYTHONHASHSEED': '1'}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True)
    names = sorted(path.name for path in (one / 'out').iterdir())
    assert names == [
        'data_card.json',
        'data_card.md',
        'interactions.parquet',
        'items.parquet',
    ]
    for name in names:
        contents = ((folder / 'out' / name).read_bytes() for folder in (one, two))
        assert next(contents) == next(contents), name
