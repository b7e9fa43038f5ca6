"""Tables of new items beside runs on prepared data."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from hellm_pyg import experiment
from hellm_pyg.config import load_config
from hellm_pyg.experiment import Run, load_run, read_new_items
from hellm_pyg.llm import encode_features
from hellm_pyg.preparation import Encoding, prepare_table
from hellm_pyg.recommendation import recommend
from tests.encoders import write_text_encoder
from tests.shop import write_shop

COLUMNS = 'sku,name,brand\n'
TEMPLATE = '{name} {brand}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts that were encoded when the folder was prepared."""
    folder = tmp_path_factory.mktemp('encoded')
    write_shop(folder)
    words = ['red', 'blue', 'thing']
    rows = [f'p{i:03d},{words[i % 3]} thing,{words[i // 3 % 3]}\n' for i in range(24)]
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
    table.write_text(rows + 'q1,blue thing,red\nq2,red,\n')  # the whole catalogue
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


def test_features_of_a_file(folder: Path, run: Run, tmp_path: Path) -> None:
    table, out = tmp_path / 'new.csv', tmp_path / 'new.safetensors'
    table.write_text(COLUMNS + 'q1,blue thing,red\np001,red,red\nq2,red,\n')
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
    table.write_text(COLUMNS + 'q1,blue thing,red\n')
    from hellm_pyg.checkpoint import load_tensors, save_tensors

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
    rows = [{'sku': name, 'name': '', 'brand': brand} for name, brand in
            [('q1', ''), ('q2', 'red'), ('q3', ''), ('p001', '')]]  # fmt: skip
    table.write_text('\n'.join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        new = read_new_items(run, table, cache=folder / 'encoded')
    assert new.ids == ['q2']
    assert caplog.messages == [
        "'new.jsonl': 2 of 3 new items are left out, as they have no features: 'q1', "
        '...'
    ]


def test_what_cannot_be_compared(folder: Path, run: Run, tmp_path: Path) -> None:
    table = tmp_path / 'new.csv'
    table.write_text('sku,name\nq1,red\n')
    with pytest.raises(ValueError, match='brand'):  # of the template
        read_new_items(run, table)
    table.write_text('id,name,brand\nq1,red,red\n')
    with pytest.raises(ValueError, match=r"'item_id'.*sku"):
        read_new_items(run, table)
    with pytest.raises(ValueError, match=r"'items' is not a file"):
        read_new_items(run, tmp_path / 'none.csv')
    table.write_text(COLUMNS + 'q1,red,red\n')
    with pytest.raises(ValueError, match=r"'features' is not a file"):
        read_new_items(run, table, {'text': tmp_path / 'none.npy'})
    with pytest.raises(ValueError, match=r"'image', they have \['text'\]"):
        read_new_items(run, table, {'image': tmp_path / 'none.npy'})


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
