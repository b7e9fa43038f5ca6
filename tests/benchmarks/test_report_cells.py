import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.cells import METRICS, load, per_user
from tests.benchmarks.fabricate import HEADLINE, TRAIN, metrics, ranks, result, write


def test_metrics_of_a_user_by_hand() -> None:
    # The tie at 10.5 shares the tenth place with the eleventh: it counts as a hit.
    values = per_user(np.array([1.0, 3.0, 10.5, 11.0, 20.0, 21.0]))
    assert METRICS == ('R@10', 'N@10', 'R@20', 'N@20')
    np.testing.assert_array_equal(values[:, 0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(values[:, 2], [1, 1, 1, 1, 1, 0])
    gain = 1 / np.log2([2, 4, 11.5, 12, 21, 22])
    np.testing.assert_allclose(values[:, 1], gain * [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(values[:, 3], gain * [1, 1, 1, 1, 1, 0])


def test_seeds_of_a_cell_are_one_model(tmp_path: Path) -> None:
    found = {seed: ranks(40, 5, seed) for seed in (3, 1, 2)}
    for seed, rank in found.items():
        write(tmp_path, result('sasrec', rank, seed=seed))
    write(tmp_path, result('lightgcn', ranks(40, 1, 9)))
    write(tmp_path, result('lightgcn', ranks(30, 1, 9), dataset='toys'))
    beauty, toys = load(tmp_path)
    assert (beauty.dataset, toys.dataset) == ('beauty', 'toys')
    model = next(m for m in beauty.models if m.key == 'sasrec')
    assert [r.seed for r in model.results] == [1, 2, 3]
    by_seed = model.metrics(HEADLINE)
    assert by_seed is not None
    np.testing.assert_allclose(by_seed[0], list(metrics(found[1]).values()))
    users = model.users(HEADLINE)
    assert users is not None
    np.testing.assert_allclose(
        users, sum(per_user(found[seed]) for seed in (1, 2, 3)) / 3
    )
    np.testing.assert_allclose(users.mean(axis=0), by_seed.mean(axis=0))


def test_headline_protocol_comes_first(tmp_path: Path) -> None:
    content = result('a', ranks(20, 1, 0))
    for key in ('test', 'ranks'):
        content[key] = dict(reversed(content[key].items()))
    write(tmp_path, content)
    assert load(tmp_path)[0].protocols == [HEADLINE, TRAIN]


def test_ranks_of_one_protocol_in_the_older_form(tmp_path: Path) -> None:
    rank = ranks(50, 1, 0)
    doubled = (2 * rank).astype('<u4').tobytes()
    packed = {
        'protocol': HEADLINE,
        'encoding': 'zlib, base64, little-endian uint32 of twice the rank',
        'data': base64.b64encode(zlib.compress(doubled)).decode(),
    }
    write(tmp_path, result('a', rank, ranks=packed))
    (model,) = load(tmp_path)[0].models
    np.testing.assert_array_equal(model.results[0].ranks[HEADLINE], rank)
    assert model.users(TRAIN) is None
    assert model.metrics(TRAIN) is not None


def test_users_need_the_ranks_of_every_seed(tmp_path: Path) -> None:
    for seed in (1, 2):
        content = result('a', ranks(50, 1, 0), seed=seed)
        if seed == 2:
            del content['ranks']
        write(tmp_path, content)
    (model,) = load(tmp_path)[0].models
    assert model.users(HEADLINE) is None


def test_curve_adds_up_the_seconds_of_epochs_without_validation(tmp_path: Path) -> None:
    rows = [
        {'epoch': 1, 'seconds': 2.0, 'metrics': None},
        {'epoch': 2, 'seconds': 3.0, 'metrics': {'N@10': 0.1}},
        {'epoch': 3, 'seconds': 4.0, 'metrics': {'N@10': 0.2}},
    ]
    write(tmp_path, result('a', ranks(9, 1, 0), validation={'curve': rows}))
    write(
        tmp_path,
        result('b', ranks(9, 1, 0), validation={}, seconds={'training': 7.0}),
    )
    one, other = (model.results[0] for model in load(tmp_path)[0].models)
    assert one.curve == [(2, 5.0, 0.1), (3, 9.0, 0.2)]
    assert one.training_seconds == 9.0
    assert (other.curve, other.training_seconds, other.peak_memory) == ([], 7.0, None)


def test_cost_of_a_result(tmp_path: Path) -> None:
    validation = result('b', ranks(60, 1, 0))['validation']
    own = {'model_bytes': 7, 'parameters': 5, 'device': 'cuda', 'threads': 1}
    write(tmp_path, result('a', ranks(60, 1, 0), validation={}, **own))
    write(tmp_path, result('b', ranks(60, 1, 0), parameters=None))
    rows = validation['curve']
    for row, seconds in zip(rows, (1.0, 9.0, 4.0, 9.0, 2.0), strict=True):
        row['eval_seconds'] = seconds  # epochs 2 and 4 have no validation
    alone = {'test': {}, 'ranks': {}, 'validation': validation}
    write(tmp_path, result('c', ranks(60, 1, 0), validation_users=30, **alone))
    write(tmp_path, result('d', ranks(60, 1, 0), **alone))
    peer = {'peer': 'cornac 3.0', 'validation': {'device': 'cpu'}}
    write(tmp_path, result('e', ranks(60, 1, 0), **peer))
    found = {model.key: model.results[0] for model in load(tmp_path)[0].models}
    a, b, c, d, e = (found[name] for name in 'abcde')
    assert (a.parameters, a.model_bytes, a.device) == (5, 7, 'cuda, 1 thread')
    assert (b.parameters, b.model_bytes, b.device) == (None, None, 'cpu, 2 threads')
    assert (a.users_per_second, a.ranking_seconds) == (120, pytest.approx(1000 / 120))
    assert e.device == 'cpu'
    assert c.users_per_second == 15  # in a validation of 2 seconds
    assert (d.users_per_second, d.ranking_seconds, e.users_per_second) == (None,) * 3


def test_grids_are_in_the_order_of_the_table(tmp_path: Path) -> None:
    for cell, key in (('embedding_dim', 'model.embedding_dim'), ('knn', 'data.knn')):
        point = {'cell': cell, 'grid': {key: 1}}
        folder = tmp_path / 'fig3'
        write(folder, result(f'{cell}-{key[-3:]}=1', ranks(9, 1, 0), **point))
    names = {'knn-knn=1': 'knn', 'embedding_dim-dim=1': 'embedding_dim'}
    (section,) = load(tmp_path / 'fig3')
    assert {m.key for m in section.everything} == set(names)
    assert list(section.grids) == ['knn', 'embedding_dim']


def test_points_of_grids_and_failures_are_apart(tmp_path: Path) -> None:
    write(tmp_path, result('hellm_pre', ranks(9, 1, 0)))
    for k in (1, 5):
        point = {'cell': 'knn', 'grid': {'data.knn': k}}
        write(tmp_path, result(f'knn-{k}', ranks(9, 1, k), **point))
    failure = {'name': 'vbpr', 'dataset': 'beauty', 'seed': 1, 'error': 'boom'}
    (tmp_path / 'beauty-vbpr-1.failed.json').write_text(json.dumps(failure))
    (section,) = load(tmp_path)
    assert [model.key for model in section.models] == ['hellm_pre']
    assert {k: len(v) for k, v in section.grids.items()} == {'knn': 2}
    assert section.failed == [failure]
    assert len(section.results) == 3


def test_ranks_that_contradict_the_metrics_are_refused(tmp_path: Path) -> None:
    content = result('a', ranks(50, 1, 0))
    content['test'][HEADLINE]['metrics']['N@10'] += 0.01
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=f"'{path}': its ranks give N@10"):
        load(tmp_path)


def test_models_of_other_users_are_refused(tmp_path: Path) -> None:
    write(tmp_path, result('a', ranks(50, 1, 0)))
    write(tmp_path, result('b', ranks(49, 1, 0)))
    with pytest.raises(ValueError, match='rank 50 and 49 users'):
        load(tmp_path)


def test_models_of_other_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path, result('a', ranks(50, 1, 0), split_fingerprint='one'))
    write(tmp_path, result('peer', ranks(50, 1, 0)))  # which has not told
    load(tmp_path)
    write(tmp_path, result('b', ranks(50, 1, 0), split_fingerprint='other'))
    with pytest.raises(ValueError, match=r'b-.*are of different splits'):
        load(tmp_path)


@pytest.mark.parametrize('text', ['{', '{"name": "a"}'])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / 'beauty-a-1.json').write_text(text)
    with pytest.raises(ValueError, match=r"beauty-a-1\.json' is no result"):
        load(tmp_path)


def test_broken_ranks_are_refused_by_name(tmp_path: Path) -> None:
    content = result('a', ranks(5, 1, 0))
    content['ranks'][HEADLINE]['data'] = 'AAAA'
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"beauty-a-1\.json': unreadable ranks"):
        load(tmp_path)
    content['ranks'][HEADLINE]['encoding'] = 'plain'
    write(tmp_path, content)
    with pytest.raises(ValueError, match="'encoding' is unknown"):
        load(tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='needs results'):
        load(tmp_path)
