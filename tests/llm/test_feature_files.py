import json

import pytest
import torch

from hellm_pyg.checkpoint import load_metadata, load_tensors
from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.datasets.features import items_hash
from hellm_pyg.llm import encode_features
from tests.llm.encoders import PROJECTION, WIDTH, picture, save_bert, save_clip


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shop')
    save_bert(folder / 'bert')
    save_clip(folder / 'clip')
    rows = ['7,red shoe,hat,b.png', '08,blue hat,,', 'x,,,a.jpg']
    (folder / 'items.csv').write_text('\n'.join(['sku,name,brand,photo', *rows]) + '\n')
    (folder / 'orders.csv').write_text('user,sku\n1,7\n1,x\n2,08\n2,7\n')
    picture(folder / 'photos' / 'b.png', 'red')
    picture(folder / 'photos' / 'a.jpg', 'blue')
    picture(folder / 'photos' / '08.jpg', 'green')
    return folder


def encode(shop, out, **arguments):
    return encode_features(
        out,
        **{
            'items': shop / 'items.csv',
            'item_id': 'sku',
            'title': 'name',
            'encoder': str(shop / 'bert'),
            'image_encoder': str(shop / 'clip'),
            'cache': shop / 'cache',
            'progress': False,
            **arguments,
        },
    )


def test_texts_and_images_in_a_file_that_data_sets_read(shop, tmp_path):
    out = tmp_path / 'new' / 'features.safetensors'
    cards = encode(
        shop,
        out,
        text='{name}. {brand}',
        images=shop / 'photos',
        image_column='photo',
    )
    tensors = load_tensors(out, {'text': (3, WIDTH), 'image': (3, PROJECTION)})
    assert tensors['text'].isnan().all(dim=1).tolist() == [False, False, True]
    assert tensors['image'].isnan().all(dim=1).tolist() == [False, True, False]
    assert cards['text']['template'] == '{name}. {brand}'
    assert json.loads(out.with_suffix('.json').read_text()) == cards
    header = json.loads(load_metadata(out)['features'])
    assert header['cards'] == cards
    assert header['items'] == items_hash(['7', '08', 'x'])
    data = InteractionFiles(
        tmp_path / 'root',
        shop / 'orders.csv',
        user='user',
        item='sku',
        items=shop / 'items.csv',
        item_id='sku',
        features={'text': out, 'image': out},
    )[0]
    rows = [['7', '08', 'x'].index(item) for item in ('08', '7', 'x')]
    for name, x in tensors.items():
        torch.testing.assert_close(
            data['item'][f'x_{name}'], x[rows], rtol=0, atol=0, equal_nan=True
        )


def test_a_column_named_title_is_not_replaced(shop, tmp_path):
    items = tmp_path / 'items.csv'
    items.write_text('sku,name,title\n7,red,blue hat\n8,red,red shoe\n')
    x = []
    for title in ('name', 'title'):
        out = tmp_path / f'{title}.safetensors'
        encode(shop, out, items=items, title=title, text='{title}')
        x.append(load_tensors(out)['text'])
    assert torch.equal(*x)
    assert not torch.equal(x[0][0], x[0][1])


def test_what_is_encoded(shop, tmp_path):
    out = tmp_path / 'features.safetensors'
    cards = encode(shop, out)
    assert list(cards) == list(load_tensors(out)) == ['text']
    assert cards['text']['template'] == '{title} {brand}'
    cards = encode(shop, out, encoder=None, images=shop / 'photos')
    assert list(cards) == list(load_tensors(out)) == ['image']
    assert cards['image']['missing'] == 2  # only 08.jpg is named by an id
    cards = encode(shop, out, images=shop / 'photos', pooling='cls', max_length=4)
    assert list(cards) == ['text', 'image']
    assert cards['text']['pooling'] == 'cls'
    assert cards['text']['max_length'] == 4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'out': 'features.npy'}, r"'out' needs to end in '\.safetensors'"),
        ({'item_id': 'skus'}, r"'skus'.*did you mean item_id='sku'"),
        ({'text': '{nome}'}, r"'nome'.*did you mean \['name'\]"),
        ({'encoder': 'no/such/folder'}, "'encoder' needs"),
        ({'images': 'no/such/folder'}, "'images' is not a folder"),
        ({'images': '.', 'image_column': 'fotos'}, "did you mean column='photo'"),
        (
            {'images': '.', 'image_column': 'photo', 'image_encoder': 'no/such/folder'},
            "'image_encoder' needs",
        ),
        ({'precision': 'fp16'}, "'precision' needs to be"),
    ],
)
def test_bad_arguments_leave_nothing(shop, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out = arguments.pop('out', 'features.safetensors')
    with pytest.raises(ValueError, match=message):
        encode(shop, out, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('linked', [False, True])
def test_the_table_of_items_is_not_overwritten(shop, tmp_path, linked):
    items = tmp_path / 'catalogue.json'
    items.write_text('{"sku": "7", "name": "red shoe"}\n')
    out = tmp_path / 'catalogue.safetensors'
    if linked:
        (tmp_path / 'cards.json').symlink_to(items)
        out = tmp_path / 'cards.safetensors'
    with pytest.raises(ValueError, match=r"'out' needs another name .*safetensors'"):
        encode_features(out, items, 'sku', 'name', encoder=str(shop / 'bert'))
    assert items.read_text() == '{"sku": "7", "name": "red shoe"}\n'
    assert not out.exists()


def test_the_same_call_gives_the_same_bytes(shop, tmp_path):
    files = [tmp_path / name for name in ('a.safetensors', 'b.safetensors')]
    for out in files:
        encode(shop, out, images=shop / 'photos', cache=out.with_suffix(''))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_earlier_file_stays_when_encoding_fails(shop, tmp_path):
    out = tmp_path / 'features.safetensors'
    encode(shop, out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="'images' has no image"):
        encode(shop, out, images=shop, image_column='photo')
    assert out.read_bytes() == before
