"""Tables of new items beside runs on prepared data."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hellm_pyg import experiment
from hellm_pyg.checkpoint import load_tensors, save_tensors
from hellm_pyg.config import load_config
from hellm_pyg.datasets.features import features_header
from hellm_pyg.experiment import Run, load_run, read_new_items
from hellm_pyg.llm import TextFeatures, encode_features
from hellm_pyg.preparation import Encoding, prepare_table
from hellm_pyg.recommendation import recommend
from tests.encoders import write_text_encoder
from tests.shop import write_shop

COLUMNS = 'sku,name,brand,size\n'
TEMPLATE = '{name} {brand} {size}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts that were encoded when the folder was prepared."""
    folder = tmp_path_factory.mktemp('encoded')
    write_shop(folder)
    words, sizes = ['red', 'blue', 'thing'], ['5', '7', '2.5']
    rows = [
        f'p{i:03d},{words[i % 3]} thing,{words[i // 3 % 3]},{sizes[i % 3]}\n'
        for i in range(24)
    ]
    (folder / 'catalogue.csv').write_text(COLUMNS + ''.join(rows))
    prepare_table(
        folder / 'shop',
        folder / 'log.csv',
        items=folder / 'catalogue.csv',
        item_id='sku',
        title='name',
        text=TEMPLATE,
        encoding=Encoding(
            text_encoder=str(write_text_encoder(folder / 'bert')),
            cache=folder / 'encoded',
            progress=False,
        ),
    )
    config = load_config(
        'sasrec',
        [f'dataset={folder / "shop"}', 'model.embedding_dim=8', 'train.epochs=1'],
    )
    experiment.pretrain(config, folder / 'run')
    return folder


@pytest.fixture
def run(folder: Path) -> Run:
    return load_run(folder / 'run')


def test_texts_are_encoded_as_the_catalogue_was(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    table = tmp_path / 'today.csv'
    rows = (folder / 'catalogue.csv').read_text()
    table.write_text(rows + 'q1,blue thing,red,7\nq2,red,,\n')  # all of today
    new = read_new_items(run, table, cache=folder / 'encoded')
    assert new.ids == ['q1', 'q2']
    assert new.titles == ['blue thing', 'red']
    titles, brands = run.ids.titles or [], run.data['item'].table['brand']
    double = list(zip(titles, brands, strict=True)).index(('blue thing', 'red'))
    assert torch.allclose(
        new.features['text'][0], run.data['item'].x_text[double], atol=1e-5
    )
    found = recommend(
        run.model, run.data, run.ids, ['u03'], k=30, exclude_seen=False, new_items=new
    )
    assert {'q1', 'q2'} < {row.item for row in found}
    assert len(found) == run.ids.num_items + 2
    assert read_new_items(run, folder / 'catalogue.csv').ids == []


@pytest.mark.parametrize(
    ('known', 'written', 'meant'),
    [
        ([7.0, 2.5], ['7', '5'], [7.0, 5.0]),  # whole numbers of 7.0, 5.0
        ([7, 5], ['7', '2.5'], [7, 2.5]),  # no whole numbers any more
        (['XL', '7'], ['7', '5.5'], ['7', '5.5']),  # no words
        ([7, 'XL'], ['7', 'red'], ['7', 'red']),
        ([None], ['7', '5'], [7, 5]),
    ],
)
def test_numbers_are_written_as_in_the_catalogue(
    folder: Path,
    run: Run,
    tmp_path: Path,
    known: list[Any],
    written: list[str],
    meant: list[Any],
) -> None:
    sizes = [known[i % len(known)] for i in range(run.ids.num_items)]
    run.data['item'].table = {**run.data['item'].table, 'size': sizes}
    table = tmp_path / 'new.csv'
    table.write_text(COLUMNS + ''.join(f'q{n},red,,{n}\n' for n in written))
    new = read_new_items(run, table, cache=folder / 'encoded')
    encode = TextFeatures(str(folder / 'bert'), TEMPLATE, cache=folder / 'encoded')
    x, _ = encode.encode({'name': ['red'] * 2, 'brand': [''] * 2, 'size': meant})
    assert torch.allclose(new.features['text'], x, atol=1e-5)


def test_an_encoder_named_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    encoding = Encoding(text_encoder='bert', cache=folder / 'encoded', progress=False)
    prepare_table(
        tmp_path / 'shop', 'log.csv', items='catalogue.csv', item_id='sku',
        title='name', text='{name}', encoding=encoding,
    )  # fmt: skip
    overrides = [f'dataset={tmp_path / "shop"}', 'model.name=Popularity']
    experiment.pretrain(load_config('sasrec', overrides), tmp_path / 'run')
    monkeypatch.chdir(tmp_path)
    Path('new.csv').write_text('sku,name\nq1,blue thing\n')
    run = load_run('run')
    assert read_new_items(run, 'new.csv', cache=folder / 'encoded').ids == ['q1']
    (folder / 'bert').rename(folder / 'moved')
    try:
        match = r"'items' need the encoder .*, or 'features' of it: 'encoder'"
        with pytest.raises(ValueError, match=match):
            read_new_items(run, 'new.csv', cache=folder / 'encoded')
    finally:
        (folder / 'moved').rename(folder / 'bert')


def test_features_that_were_given_keep_their_card(folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / 'texts.safetensors', tmp_path / 'new.csv'
    common: dict[str, Any] = {
        'item_id': 'sku', 'title': 'name', 'encoder': str(folder / 'bert'),
        'text': '{name} {brand}', 'cache': folder / 'encoded', 'progress': False,
    }  # fmt: skip
    encode_features(out, folder / 'catalogue.csv', **common)
    prepare_table(
        tmp_path / 'shop', folder / 'log.csv', items=folder / 'catalogue.csv',
        item_id='sku', title='name', features={'text': out},
    )  # fmt: skip
    overrides = [f'dataset={tmp_path / "shop"}', 'model.name=Popularity']
    experiment.pretrain(load_config('sasrec', overrides), tmp_path / 'run')
    run = load_run(tmp_path / 'run')
    table.write_text(COLUMNS + 'q1,blue thing,red,7\n')
    new = read_new_items(run, table, cache=folder / 'encoded')
    encode_features(out, table, **common)
    assert torch.allclose(new.features['text'], load_tensors(out)['text'], atol=1e-5)


def test_features_of_a_file(folder: Path, run: Run, tmp_path: Path) -> None:
    table, out = tmp_path / 'new.csv', tmp_path / 'new.safetensors'
    table.write_text(COLUMNS + 'q1,blue thing,red,7.0\np001,red,red,\nq2,red,,\n')
    common = {'items': table, 'item_id': 'sku', 'title': 'name', 'progress': False}
    common |= {'encoder': str(folder / 'bert'), 'cache': folder / 'encoded'}
    encode_features(out, text=TEMPLATE, **common)
    given = read_new_items(run, table, {'text': out})
    encoded = read_new_items(run, table, cache=folder / 'encoded')
    assert given.ids == encoded.ids == ['q1', 'q2']
    assert torch.allclose(given.features['text'], encoded.features['text'], atol=1e-5)
    np.save(tmp_path / 'own.npy', torch.eye(3, 16).numpy())
    own = read_new_items(run, table, {'text': tmp_path / 'own.npy'})
    assert torch.equal(own.features['text'], torch.eye(3, 16)[[0, 2]])
    encode_features(out, text='{brand}', **common)
    with pytest.raises(ValueError, match=r"'text' need the encoder .*template='{name}"):
        read_new_items(run, table, {'text': out})
    np.save(tmp_path / 'own.npy', torch.eye(2, 16).numpy())
    with pytest.raises(ValueError, match=r'needs 3 rows, one for each of the rows of'):
        read_new_items(run, table, {'text': tmp_path / 'own.npy'})


def test_another_encoder_of_the_same_name(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    weights = folder / 'bert' / 'model.safetensors'
    former = weights.read_bytes()
    table = tmp_path / 'new.csv'
    table.write_text(COLUMNS + 'q1,blue thing,red,7\n')
    try:
        changed = {name: x + 0.01 for name, x in load_tensors(weights).items()}
        save_tensors(weights, changed, {'format': 'pt'})
        with pytest.raises(ValueError, match=r"'text' need the encoder .* weights="):
            read_new_items(run, table, cache=folder / 'encoded')
    finally:
        weights.write_bytes(former)


def test_items_without_a_text_are_left_out(
    run: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / 'new.jsonl'
    rows = [{'sku': name, 'name': '', 'brand': brand, 'size': None} for name, brand in
            [('q1', ''), ('q2', 'red'), ('q3', ''), ('p001', '')]]  # fmt: skip
    table.write_text('\n'.join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        new = read_new_items(run, table, cache=folder / 'encoded')
    assert new.ids == ['q2']
    assert caplog.messages == [
        "'new.jsonl': 2 of 3 new items are left out, as they have no features: 'q1', "
        '...'
    ]
    caplog.clear()
    table.write_text(json.dumps({'sku': 'q1', 'name': '', 'brand': '', 'size': None}))
    assert read_new_items(run, table, cache=folder / 'encoded').ids == []
    assert "1 of 1 new items are left out, as they have no features: 'q1'" in (
        caplog.text
    )


def test_what_cannot_be_compared(folder: Path, run: Run, tmp_path: Path) -> None:
    table = tmp_path / 'new.csv'
    table.write_text('sku,name\nq1,red\n')
    match = r"'items' needs the columns .*new.csv' without 'brand'"
    with pytest.raises(ValueError, match=match):
        read_new_items(run, table)
    table.write_text('id,name,brand\nq1,red,red\n')
    with pytest.raises(ValueError, match=r"'item_id'.*sku"):
        read_new_items(run, table)
    with pytest.raises(ValueError, match=r"'items' is not a file"):
        read_new_items(run, tmp_path / 'none.csv')
    table.write_text(COLUMNS + 'q1,red,red,7\n')
    with pytest.raises(ValueError, match=r"'features' is not a file"):
        read_new_items(run, table, {'text': tmp_path / 'none.npy'})
    with pytest.raises(ValueError, match=r"'image', they have \['text'\]"):
        read_new_items(run, table, {'image': tmp_path / 'none.npy'})
    picture = tmp_path / 'image.safetensors'
    cards = features_header(['q1'], {'image': {'encoder': 'clip'}})
    save_tensors(picture, {'image': torch.ones(1, 16)}, cards)
    match = r"'text' need a file that holds them \(got '.*', which holds \['image'\]\)"
    with pytest.raises(ValueError, match=match):
        read_new_items(run, table, {'text': picture})


def test_ids_keep_their_type(tmp_path: Path) -> None:
    overrides = [*write_shop(tmp_path), 'model.name=Popularity']
    for name in ('log.csv', 'items.csv'):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(re.sub(r'\bp0*(\d+),', r'\1,', text))
    experiment.pretrain(load_config('sasrec', overrides), tmp_path / 'run')
    run = load_run(tmp_path / 'run')
    table = tmp_path / 'new.csv'
    table.write_text('sku,title\n26,new\n3,known\nA-7,word\n')
    np.save(tmp_path / 'new.npy', np.eye(3, dtype='float32'))
    new = read_new_items(run, table, {'text': tmp_path / 'new.npy'})
    assert new.ids == [26, 'A-7']


def test_data_without_features(tmp_path: Path) -> None:
    overrides = [*write_shop(tmp_path), 'model.name=Popularity', 'data.features={}']
    experiment.pretrain(load_config('sasrec', overrides), tmp_path / 'run')
    with pytest.raises(ValueError, match=r"'items' cannot be compared .*no features"):
        read_new_items(load_run(tmp_path / 'run'), tmp_path / 'items.csv')


def test_features_of_unknown_make_need_a_file(tmp_path: Path) -> None:
    overrides = [*write_shop(tmp_path), 'model.name=Popularity']
    experiment.pretrain(load_config('sasrec', overrides), tmp_path / 'run')
    run = load_run(tmp_path / 'run')
    table = tmp_path / 'new.csv'
    table.write_text('sku,title\nq1,new\n')
    with pytest.raises(ValueError, match=r"'features' needs .* \['text'\] \(got none"):
        read_new_items(run, table)
    np.save(tmp_path / 'new.npy', np.array([[1, 0, 0.1]], dtype='float32'))
    new = read_new_items(run, table, {'text': tmp_path / 'new.npy'})
    (row, *_) = recommend(
        run.model, run.data, run.ids, ['u00'], k=1, new_items=new, candidates=['q1']
    )
    assert (row.item, row.title) == ('q1', 'new')
