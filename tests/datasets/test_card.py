import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.checkpoint import load_json
from hellm_pyg.datasets import FakeRecDataset, IdMap, InteractionFiles
from hellm_pyg.datasets.card import _gini, _histogram, data_card, write_card
from hellm_pyg.datasets.card_text import bars, card_markdown
from hellm_pyg.datasets.graph import interaction_graph
from hellm_pyg.datasets.provenance import (
    Provenance,
    describe_file,
    table_provenance,
)
from hellm_pyg.transforms import LeaveOneOut

DAY = 86_400
START = 1_577_836_800  # 2020-01-01


def graph(rows, num_users, num_items, features=None, titles=None, table=None):
    """A graph from (user, item, time)."""
    users, items, times = zip(*sorted(rows, key=lambda r: (r[0], r[2])), strict=True)
    ids = IdMap(
        [f'u{i}' for i in range(num_users)], [f'i{i}' for i in range(num_items)], titles
    )
    return interaction_graph(
        ids,
        torch.tensor([users, items]),
        torch.tensor(times),
        features or {},
        table or {},
        'shop',
    )


@pytest.fixture
def data():
    rows = [(0, i, START + i * DAY) for i in range(4)]
    rows += [(1, 0, START + 400 * DAY), (1, 1, START + 401 * DAY)]
    rows += [(2, 0, START), (2, 4, START + DAY), (2, 1, START + 2 * DAY)]
    nan = float('nan')
    return graph(
        rows,
        3,
        5,
        {'text': torch.tensor([[1.0, 2], [nan, nan], [3, 4], [5, 6], [7, 8]])},
        ['a', 'b', '', 'd', 'e'],
        {'brand': ['x', '', '', 'x', 'y'], 'price': [1.5, None, 0, 2, 3]},
    )


def test_counts(data):
    card = data_card(data)
    assert card['counts'] == {
        'users': 3,
        'items': 5,
        'interactions': 9,
        'sparsity': pytest.approx(1 - 9 / 15),
    }
    assert card['lengths']['mean'] == 3
    assert (card['lengths']['smallest'], card['lengths']['largest']) == (2, 4)
    assert card['lengths']['histogram'] == [
        {'from': n, 'to': n, 'count': 1} for n in (2, 3, 4)
    ]
    assert card['popularity']['median'] == 1
    assert card['popularity']['top shares']['20'] == pytest.approx(3 / 9)
    assert card['popularity']['top shares']['50'] == pytest.approx(7 / 9)
    assert card['columns'] == {'title': 4, 'brand': 3, 'price': 4}
    assert card['modalities'] == {
        'text': {'width': 2, 'present': 4, 'coverage': 0.8, 'encoder': {}}
    }
    assert card['split'] == {'how': 'none: all interactions are edges'}


def test_times(data):
    times = data_card(data)['times']
    assert (times['first day'], times['last day']) == ('2020-01-01', '2021-02-05')
    assert times['years'] == {'2020': 7, '2021': 2}
    data.time_unit = 'number'
    assert set(data_card(data)['times']) == {'first', 'last'}
    data.time_unit = 'position'
    assert data_card(data)['times'] == {}
    del data['user', 'interacts', 'item'].time
    assert data_card(data)['times'] == {}


def test_times_that_are_no_dates(data):
    data['user', 'interacts', 'item'].time = torch.arange(9)
    assert data_card(data)['times'] == {'first': 0, 'last': 8}


def test_split_changes_no_count(data):
    before = data_card(data)
    after = data_card(LeaveOneOut()(data))
    for name in ('counts', 'lengths', 'popularity', 'times', 'modalities'):
        assert after[name] == before[name], name
    split = after['split']
    assert (split['training'], split['validation'], split['test']) == (5, 2, 2)
    # Item 2 is only validated, item 3 only tested, item 4 only validated.
    assert split['items without training'] == 3
    assert split['validation targets without training'] == 2
    assert split['test targets without training'] == 1


def test_later_interactions_count(data):
    later = data['user', 'later', 'item']
    later.edge_index = torch.tensor([[0, 1], [4, 4]])
    later.time = torch.tensor([START + 500 * DAY] * 2)
    data['user'].val_item = torch.tensor([-1, 2, -1])
    data['user'].test_item = torch.tensor([4, -1, -1])
    card = data_card(data)
    assert card['counts']['interactions'] == 9 + 2 + 2
    assert card['times']['last day'] == '2021-05-15'
    assert card['split']['how'].startswith('by date')
    assert (card['split']['validation'], card['split']['later']) == (1, 2)


def test_same_input_same_bytes(tmp_path):
    files = []
    for name in ('one', 'two'):
        data = FakeRecDataset(num_users=60, num_items=30)[0]
        provenance = Provenance(settings={'b': 1, 'a': (1, 2)}, dropped={'z': 1})
        files.append(write_card(tmp_path / name, data, provenance))
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert str(tmp_path) not in one.read_text()
    assert sorted(path.name for path in (tmp_path / 'one').iterdir()) == [
        'data_card.json',
        'data_card.md',
    ]


def test_files_and_reasons(tmp_path, data):
    path = tmp_path / 'orders.csv'
    path.write_bytes(b'abc')
    file = describe_file(path)
    assert file == {
        'name': 'orders.csv',
        'bytes': 3,
        'sha256': 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
    }
    provenance = Provenance(
        source='A shop | of *mine*',
        files=[file],
        settings={'min_count': 5, 'columns': {'user': 'customer'}, 'since': None},
        dropped={'repeated user and item': 12, 'below min_count': 34_000},
        template='{name}. <{brand}>',
        encoders={'text': {'encoder': 'MiniLM', 'weights': 'f00'}},
        split='by date',
        images={'new': 3, 'not found': 2},
        notes=['times are in\nseconds'],
    )
    markdown, plain = write_card(tmp_path / 'card', data, provenance)
    card = load_json(plain)
    assert card['dropped'] == {'repeated user and item': 12, 'below min_count': 34_000}
    assert card['modalities']['text']['encoder']['encoder'] == 'MiniLM'
    text = markdown.read_text(encoding='utf-8')
    assert text == card_markdown(card)
    for line in (
        '# shop',
        'A shop \\| of \\*mine\\*',
        '| repeated user and item | 12 |',
        '| below min\\_count | 34,000 |',
        '| since | - |',
        '> {name}. \\<{brand}\\>',
        '| text | weights | f00 |',
        '| how | by date |',
        '| not found | 2 |',
        '- times are in seconds',
        f'| orders.csv | 3 | {file["sha256"]} |',
        '| text | 2 features | 4 | 1 | 80.00 % |',
    ):
        assert line in text.splitlines(), line


def test_provenance_of_tables(tmp_path):
    log, items = tmp_path / 'orders.csv', tmp_path / 'catalogue.csv'
    log.write_text(
        'customer,sku,when\n'
        'a,x,2024-01-01\na,y,2024-01-02\na,x,2024-01-03\nb,x,2024-01-01\n'
        'b,y,2024-01-02\nc,x,2024-01-02\nb,w,2024-01-05\na,w,2024-01-05\n'
    )
    items.write_text('sku,name\nx,One\ny,Two\nz,Three\n')
    dataset = InteractionFiles(
        tmp_path / 'cache',
        log,
        time='when',
        items=items,
        item_id='sku',
        title='name',
        min_count=2,
    )
    provenance = table_provenance(dataset.report, template='{name}')
    card = data_card(dataset[0], provenance)
    assert card['counts']['interactions'] == 6
    assert card['dropped'] == {
        'interactions: repeated': 1,
        'interactions: below min_count': 1,
        'rows of the item table: no interactions': 1,
    }
    assert [file['name'] for file in card['files']] == ['orders.csv', 'catalogue.csv']
    assert card['files'][0]['sha256'] == describe_file(log)['sha256']
    assert card['settings']['columns']['time'] == 'when'
    assert card['settings']['min_count'] == 2
    assert card['template'] == '{name}'
    assert card['times']['last day'] == '2024-01-05'
    assert card['notes'] == [
        'Read 8 interactions of 3 users with 3 items.',
        'Times were read as dates.',
        'The column of user was guessed: customer.',
        'The column of item was guessed: sku.',
        '1 items have no row in the item table.',
    ]


def test_images_by_their_mask(data):
    data['item'].image_missing = torch.tensor([True, False, True, False, False])
    assert data_card(data)['columns']['image'] == 3


def test_write_fails_whole(tmp_path, data, monkeypatch):
    write_card(tmp_path, data)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(card):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('hellm_pyg.datasets.card.card_markdown', broken)
    with pytest.raises(OSError, match='No space'):
        write_card(tmp_path, data, Provenance(source='other'))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        ({'settings': {'a': object()}}, 'settings'),
        ({'dropped': {'a': float('nan')}}, 'dropped'),
        ({'files': [b'']}, 'files'),
    ],
)
def test_provenance_is_plain(kwargs, name):
    with pytest.raises(ValueError, match=f"'{name}' needs plain JSON values"):
        Provenance(**kwargs)


def test_encoder_of_no_modality(data):
    with pytest.raises(ValueError, match=r"'encoders' names .*\['image'\]"):
        data_card(data, Provenance(encoders={'image': {}}))


@given(
    st.lists(
        st.one_of(st.integers(0, 40), st.integers(0, 10**7)), min_size=1, max_size=50
    )
)
def test_histogram_counts_every_value_once(values):
    steps = _histogram(np.array(values))
    assert len(steps) <= 60
    for before, after in pairwise(steps):
        assert after['from'] == before['to'] + 1
    for step in steps:
        inside = [value for value in values if step['from'] <= value <= step['to']]
        assert step['count'] == len(inside)
    assert sum(step['count'] for step in steps) == len(values)
    assert steps[0]['count']
    assert steps[-1]['count']


@given(st.lists(st.integers(0, 99), min_size=1, max_size=20))
def test_gini_is_half_the_mean_difference(values):
    x = np.array(values, dtype=float)
    differences = np.abs(x[:, None] - x).mean()
    expected = differences / (2 * x.mean()) if x.any() else 0
    assert _gini(np.array(values)) == pytest.approx(expected)


def test_bars():
    lines = bars([('1', 80, '80'), ('2-9', 1, '1'), ('10', 0, '0')]).splitlines()
    assert lines == ['```text', '  1  80  ' + '█' * 40, '2-9   1  ▌', ' 10   0', '```']


def test_no_interactions():
    data = graph([(0, 0, 0)], 1, 1)
    edges = data['user', 'interacts', 'item']
    edges.edge_index = torch.empty(2, 0, dtype=torch.long)
    edges.time = torch.empty(0, dtype=torch.long)
    card = data_card(data)
    assert card['counts']['interactions'] == 0
    assert json.dumps(card_markdown(card))
