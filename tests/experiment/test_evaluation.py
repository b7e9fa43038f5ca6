from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hellm_pyg import checkpoint, experiment
from hellm_pyg.config import Config, save_config
from hellm_pyg.evaluation import Protocol
from tests.experiment.configs import SMALL, shop_config
from tests.shop import write_shop


def test_evaluation_is_kept_under_its_protocol(shop: Path) -> None:
    headline = experiment.evaluate_run(shop / 'seq')
    assert headline.protocol == Protocol()
    other = experiment.evaluate_run(
        shop / 'seq', 'test', ['eval.mask=none', 'eval.history=train', 'eval.ks=[5]']
    )
    assert other.protocol == Protocol('train', 'none')
    assert set(other.metrics) == {'R@5', 'N@5', 'MRR@5'}
    results = json.loads((shop / 'seq' / 'evaluation.json').read_text())
    assert results['test, history=train+val, mask=seen']['metrics'] == headline.metrics
    assert results['test, history=train, mask=none']['metrics'] == other.metrics
    ranks = checkpoint.load_tensors(
        shop / 'seq' / 'ranks-test-train+val-seen.safetensors'
    )
    assert torch.equal(ranks['rank'], headline.rank)
    assert torch.equal(ranks['user'], headline.user)


def test_protocols_are_kept_beside_each_other(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'run')
    (tmp_path / 'run' / 'evaluation.json').unlink(missing_ok=True)
    asked = [Protocol(), Protocol('train', 'train'), Protocol('train+val', 'none')]
    found = experiment.evaluate_run_protocols(tmp_path / 'run', asked)
    assert [result.protocol for result in found] == asked
    kept = checkpoint.load_json(tmp_path / 'run' / 'evaluation.json', dict)
    assert list(kept) == [f'test, {protocol}' for protocol in asked]
    for result in found:
        overrides = [
            f'eval.history={result.protocol.history}',
            f'eval.mask={result.protocol.mask}',
        ]
        alone = experiment.evaluate_run(shop / 'seq', 'test', overrides)
        assert torch.equal(result.rank, alone.rank)
        assert kept[f'test, {result.protocol}']['metrics'] == alone.metrics


def test_results_go_with_the_model_that_they_are_of(tmp_path: Path) -> None:
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    run = tmp_path / 'run'
    experiment.pretrain(config, run)
    experiment.evaluate_run(run)
    kept = {'evaluation.json', 'ranks-test-train+val-seen.safetensors'}
    experiment.pretrain(config, run)  # finished before
    assert kept < {path.name for path in run.iterdir()}
    (run / 'metrics.json').unlink()
    shutil.rmtree(run / 'state')
    experiment.pretrain(config, run)
    assert not kept & {path.name for path in run.iterdir()}


def test_a_result_that_cannot_be_kept_is_told(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'run')
    (tmp_path / 'run' / 'evaluation.json').write_text('{')
    found = experiment.evaluate_run(tmp_path / 'run')
    assert found.metrics == experiment.evaluate_run(shop / 'seq').metrics
    assert 'run: the result is not kept: ' in caplog.text


def test_other_cutoffs_join_those_that_are_kept(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'run')
    key = 'test, history=train+val, mask=seen'
    first = experiment.evaluate_run(tmp_path / 'run').metrics
    second = experiment.evaluate_run(tmp_path / 'run', 'test', ['eval.ks=[5]']).metrics

    def kept() -> dict[str, float]:
        path = tmp_path / 'run' / 'evaluation.json'
        return checkpoint.load_json(path, dict)[key]['metrics']

    assert kept() == {**first, **second}
    ranks = tmp_path / 'run' / 'ranks-test-train+val-seen.safetensors'
    tensors = checkpoint.load_tensors(ranks)
    tensors['rank'] += 1  # of a model that was another one
    checkpoint.save_tensors(ranks, tensors)
    experiment.evaluate_run(tmp_path / 'run', 'test', ['eval.ks=[5]'])
    assert kept() == second


def test_folders_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'run' needs .* of a run .*'config\.yaml'"):
        experiment.load_run(tmp_path)
    save_config(Config(), tmp_path / 'config.yaml')
    with pytest.raises(ValueError, match='not trained to its end'):
        experiment.load_run(tmp_path)


def test_run_of_other_data_is_refused(tmp_path: Path) -> None:
    config = shop_config(tmp_path, 'sasrec', 'model.name=Popularity')
    experiment.pretrain(config, tmp_path / 'run')
    with (tmp_path / 'log.csv').open('a') as file:
        file.write('newcomer,p001,1\n')
    with pytest.raises(ValueError, match=r'trained on other data.*got 31 and 24'):
        experiment.load_run(tmp_path / 'run')
    (tmp_path / 'log.csv').unlink()
    match = r"'data.interactions' is not a file .*log\.csv'\): .* 'dataset=FOLDER'"
    with pytest.raises(ValueError, match=match):
        experiment.load_run(tmp_path / 'run')
    moved = tmp_path / 'moved'
    moved.mkdir()
    overrides = write_shop(moved)
    run = experiment.load_run(tmp_path / 'run', overrides[:2])
    assert run.config.data.interactions == str(moved / 'log.csv')


def test_changed_interactions_of_the_same_catalogue_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment.pretrain(shop_config(tmp_path, 'sasrec', *SMALL), tmp_path / 'run')
    experiment.load_run(tmp_path / 'run')
    assert 'have changed' not in caplog.text
    log = tmp_path / 'log.csv'
    first, *rest = log.read_text().splitlines(keepends=True)
    log.write_text(first + ''.join(rest[:-1]))
    experiment.load_run(tmp_path / 'run')
    assert 'have changed since it was trained' in caplog.text
    with pytest.raises(ValueError, match=r"run' was trained on other interactions or"):
        experiment.evaluate_run(tmp_path / 'run')
    assert not (tmp_path / 'run' / 'evaluation.json').exists()


def test_results_of_other_settings_are_not_kept(
    shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'run')
    headline = experiment.evaluate_run(tmp_path / 'run')
    before = (tmp_path / 'run' / 'evaluation.json').read_bytes()
    for override in ('data.sample=0.2', 'train.max_len=2'):
        other = experiment.evaluate_run(tmp_path / 'run', 'test', [override])
        assert other.metrics != headline.metrics
        key = override.partition('=')[0]
        assert f"the result is not kept, as '{key}' is not that of" in caplog.text
    assert (tmp_path / 'run' / 'evaluation.json').read_bytes() == before
    moved = [one for one in write_shop(tmp_path) if 'data.' in one]
    experiment.evaluate_run(tmp_path / 'run', 'val', moved)
    found = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
    assert 'val, history=train+val, mask=seen' in found
