import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import HeteroData

from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.datasets.cache import content_key
from hellm_pyg.llm import feature_cache
from hellm_pyg.llm.features import ImageFeatures, TextFeatures, encode_texts
from hellm_pyg.llm.text_encoder import TextEncoder
from hellm_pyg.transforms import KNNHyperedges
from tests.llm.encoders import PROJECTION, WIDTH, picture, save_bert, save_clip

TITLES = ['red shoe', 'blue', '', 'red <b>hat</b>', 'blue']
BRANDS = ['hat', 'red', '', '', 'red']


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bert')
    save_bert(folder)
    return str(folder)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip')
    save_clip(folder)
    return str(folder)


@pytest.fixture
def calls(monkeypatch):
    """Texts of each call of an encoder."""
    made, encode = [], TextEncoder.encode

    def counted(self, texts, advance=None):
        made.append(list(texts))
        return encode(self, texts, advance)

    monkeypatch.setattr(TextEncoder, 'encode', counted)
    return made


def catalogue(order=(0, 1, 2, 3, 4)):
    data = HeteroData()
    data['item'].num_nodes = len(order)
    data['item'].title = [TITLES[row] for row in order]
    data['item'].table = {'brand': [BRANDS[row] for row in order]}
    return data


def test_encode_texts_ignores_batch_mates(bert):
    texts = ['red shoe', 'blue', 'red red red shoe blue', 'shoe']
    together = encode_texts(texts, bert, batch_size=4, max_length=32)
    alone = encode_texts(texts, bert, batch_size=1, max_length=32)
    assert together.shape == (4, WIDTH)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(4))
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_encode_texts_marks_empty_texts_as_missing(bert):
    x = encode_texts(['red', ' ', 'blue'], bert, max_length=32)
    assert x[1].isnan().all()
    assert not x[[0, 2]].isnan().any()


@pytest.mark.parametrize('texts', [[], [' ', '']])
def test_encode_texts_needs_texts(bert, texts):
    with pytest.raises(ValueError, match="'texts' needs at least one"):
        encode_texts(texts, bert)


def test_text_features(bert, tmp_path, calls):
    transform = TextFeatures(bert, '{title}. {brand}', cache=tmp_path, progress=False)
    data = transform(catalogue())
    x = data['item'].x_text
    assert x.shape == (5, WIDTH)
    assert x.isnan().all(dim=1).tolist() == [False, False, True, False, False]
    assert torch.equal(x[1], x[4])
    assert calls == [['red shoe. hat', 'blue. red', 'red hat.']]
    alone = TextEncoder(bert).encode(['red hat.'])
    torch.testing.assert_close(x[3:4], alone, rtol=1e-2, atol=1e-2)
    card = data.feature_cards['text']
    assert json.loads(json.dumps(card)) == card
    assert card['template'] == '{title}. {brand}'
    assert (card['items'], card['distinct'], card['missing']) == (5, 3, 1)
    assert card['weights'] == TextEncoder(bert).weights
    assert str(transform).startswith('TextFeatures(')


def test_the_same_texts_in_any_order_come_from_the_cache(bert, tmp_path, calls):
    transform = TextFeatures(bert, cache=tmp_path, progress=False)
    x = transform(catalogue())['item'].x_text
    order = [4, 2, 0, 3, 1, 1]
    permuted = transform(catalogue(order))['item'].x_text
    assert len(calls) == 1
    torch.testing.assert_close(permuted, x[order], rtol=0, atol=0, equal_nan=True)
    own = TextFeatures(bert, cache=tmp_path / 'other', progress=False)
    fresh = own(catalogue(order))['item'].x_text
    assert len(calls) == 2
    torch.testing.assert_close(fresh, x[order], rtol=0, atol=0, equal_nan=True)


def test_other_templates_encoders_and_settings_are_encoded(bert, tmp_path, calls):
    def run(encoder=bert, template='{title}', **settings):
        before = len(calls)
        transform = TextFeatures(
            encoder, template, cache=tmp_path / 'cache', progress=False, **settings
        )
        transform(catalogue())
        return len(calls) - before

    assert run() == 1
    assert run() == 0
    assert run(batch_size=1, device='cpu') == 0
    assert run(template='{title} {brand}') == 1
    assert run(pooling='cls') == 1
    assert run(normalize=True) == 1
    assert run(max_length=3) == 1
    assert run(precision='fp32') + run(precision='bf16') == 1  # 'auto' was one of them
    model = save_bert(tmp_path / 'tuned')
    assert run(str(tmp_path / 'tuned')) == 0
    model.embeddings.word_embeddings.weight.data[5] += 1
    model.save_pretrained(tmp_path / 'tuned')
    assert run(str(tmp_path / 'tuned')) == 1


def test_batches_do_not_matter(bert, tmp_path):
    rows = [
        TextFeatures(
            bert, cache=tmp_path / str(size), batch_size=size, precision='fp32'
        )(catalogue())['item'].x_text
        for size in (1, 2, 64)
    ]
    for x in rows[1:]:
        torch.testing.assert_close(x, rows[0], equal_nan=True)


def test_fingerprint_follows_the_features(bert, tmp_path):
    def fingerprint(order, **settings):
        data = catalogue(order)
        data.fingerprint = 'of the interactions'
        transform = TextFeatures(bert, cache=tmp_path, progress=False, **settings)
        return transform(data).fingerprint

    first = fingerprint(range(5))
    assert first == fingerprint(range(5)) != 'of the interactions'
    assert first != fingerprint([1, 0, 2, 3, 4])
    assert first != fingerprint(range(5), pooling='cls')
    assert first != fingerprint(range(5), modality='words')


def test_texts_that_cannot_be_made(bert, tmp_path):
    def run(data, template=None):
        return TextFeatures(bert, template, cache=tmp_path)(data)

    with pytest.raises(ValueError, match=r"did you mean \['brand'\]"):
        run(catalogue(), '{brnd}')
    with pytest.raises(ValueError, match="'texts' needs at least one text"):
        run(catalogue([2]))
    bare = HeteroData()
    bare['item'].num_nodes = 3
    with pytest.raises(ValueError, match="'template' needs to be given"):
        run(bare)
    short = catalogue()
    short['item'].num_nodes = 6
    with pytest.raises(ValueError, match=r'each of its 6 items \(got 5\)'):
        run(short)


def test_image_features_by_column(clip, tmp_path):
    picture(tmp_path / 'photos' / 'a.jpg', 'red')
    picture(tmp_path / 'photos' / 'b.png', 'blue')
    (tmp_path / 'photos' / 'bad.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut off')
    data = catalogue()
    names = ['b.png', '', 'bad.jpg', 'a.jpg', None]
    data['item'].table['image'] = names
    transform = ImageFeatures(
        tmp_path / 'photos', clip, cache=tmp_path / 'cache', progress=False
    )
    data = transform(data)
    x = data['item'].x_image
    assert x.shape == (5, PROJECTION)
    assert x.isnan().all(dim=1).tolist() == [False, True, True, False, True]
    assert not x[[0, 3]].isnan().any()
    card = data.feature_cards['image']
    assert json.loads(json.dumps(card)) == card
    assert card['reasons']['no file name'] == 2
    assert sum(card['reasons'].values()) == card['missing'] == 3
    data['item'].table['picture'] = names[::-1]
    transform = ImageFeatures(
        tmp_path / 'photos', clip, 'picture', 'photo', cache=tmp_path / 'cache'
    )
    data = transform(data)
    torch.testing.assert_close(data['item'].x_photo, x.flip(0), equal_nan=True)
    assert set(data.feature_cards) == {'image', 'photo'}


def test_keys_follow_the_files_that_features_are_made_of(bert, clip, tmp_path):
    photos, encoder = tmp_path / 'photos', tmp_path / 'encoder'
    picture(photos / 'a' / 'a.jpg', 'red')
    shutil.copytree(bert, encoder)

    def images(color, **kwargs):
        picture(photos / 'a' / 'a.jpg', color)
        return content_key([], {'x': ImageFeatures(photos, clip, **kwargs)})

    def texts(name='minilm', **kwargs):
        return content_key([], {'x': [TextFeatures(name, **kwargs)]})

    key = images('red')
    assert images('red', device='cpu', batch_size=1, cache=tmp_path) == key
    other = [images('blue'), images('red', column='file'), texts(), texts(str(encoder))]
    assert texts(bert) == other[-1]
    (encoder / 'model.safetensors').write_bytes(b'other weights')
    other += [texts(str(encoder)), texts(template='{title}')]
    assert len({key, *other}) == 7


def test_image_features_errors(clip, tmp_path):
    data = catalogue()
    with pytest.raises(ValueError, match="'images' is not a folder"):
        ImageFeatures(tmp_path / 'nowhere', clip)(data)
    with pytest.raises(ValueError, match="'column' needs to name the column"):
        ImageFeatures(tmp_path, clip)(data)
    data['item'].table['picture'] = ['x.jpg'] * 5
    with pytest.raises(ValueError, match=r"'pictures'.*did you mean column='picture'"):
        ImageFeatures(tmp_path, clip, 'pictures')(data)
    with pytest.raises(ValueError, match=r"'images' has no image.*x\.jpg"):
        ImageFeatures(tmp_path, clip, 'picture', cache=tmp_path)(data)


def test_from_a_shops_files_to_hyperedges(bert, clip, tmp_path):
    items = ['B-1', 'B-2', 'B-3', 'B-4', 'B-5']
    lines = ['sku,name', *(f'{i},{t}' for i, t in zip(items, TITLES, strict=True))]
    (tmp_path / 'items.csv').write_text('\n'.join(lines) + '\n')
    orders = [f'u{u},{item}' for u in range(3) for item in items]
    (tmp_path / 'orders.csv').write_text('\n'.join(['user,sku', *orders]) + '\n')
    for item, colour in zip(items[1:], ('red', 'blue', 'green', 'gold'), strict=True):
        picture(tmp_path / 'photos' / f'{item}.jpg', colour)
    cache = {'cache': tmp_path / 'features', 'progress': False}
    data = InteractionFiles(
        tmp_path / 'root',
        tmp_path / 'orders.csv',
        user='user',
        item='sku',
        items=tmp_path / 'items.csv',
        item_id='sku',
        title='name',
        pre_transform=T.Compose(
            [
                TextFeatures(bert, **cache),
                ImageFeatures(tmp_path / 'photos', clip, **cache),
                KNNHyperedges(k=2),
            ]
        ),
    )[0]
    assert data['item'].x_text.isnan().any(dim=1).tolist() == [t == '' for t in TITLES]
    assert data['item'].x_image.isnan().any(dim=1).tolist() == [True] + 4 * [False]
    assert data.feature_cards['text']['template'] == '{title}'
    for modality, missing in {'text': 2, 'image': 0}.items():
        members = data['item', 'member_of', f'{modality}_hyperedge'].edge_index
        assert missing not in members[0].tolist()


def test_a_killed_process_goes_on(bert, tmp_path, monkeypatch, calls):
    cache = tmp_path / 'cache'
    code = """
        import sys, time
        from hellm_pyg.llm import feature_cache
        from hellm_pyg.llm.features import TextFeatures
        from hellm_pyg.llm.text_encoder import TextEncoder
        from tests.llm.test_features import catalogue
        feature_cache.SHARD_SIZE = 1
        encode, calls = TextEncoder.encode, []
        def slow(self, texts, advance=None):
            calls.append(texts)
            if len(calls) == 3:
                time.sleep(600)
            return encode(self, texts, advance)
        TextEncoder.encode = slow
        TextFeatures(sys.argv[1], '{title}', cache=sys.argv[2])(catalogue())
    """
    process = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(code), bert, str(cache)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, 'PYTHONPATH': '.'},
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(cache.glob('*/rows-*.safetensors'))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(feature_cache, 'SHARD_SIZE', 1)
    x = TextFeatures(bert, '{title}', cache=cache)(catalogue())['item'].x_text
    assert calls == [['blue']]
    other = TextFeatures(bert, '{title}', cache=tmp_path / 'other')(catalogue())
    assert len(calls) == 4
    torch.testing.assert_close(x, other['item'].x_text, rtol=0, atol=0, equal_nan=True)
