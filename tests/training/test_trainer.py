"""What a run does and leaves behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import load_json, load_metadata, load_tensors
from hellm_pyg.config import EvalConfig
from hellm_pyg.data import PairBatch, PairLoader, SequenceBatch, SequenceLoader
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import Evaluation, Protocol, evaluate
from hellm_pyg.nn.models import LightGCN, SASRec
from hellm_pyg.training import NonFiniteLossError, Trainer, trainer
from tests.training.toy import CONFIG, ITEMS, USERS, Toy, make_data, make_trainer


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / 'log.jsonl').open()]


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def test_a_run(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, settings={'model': {'embedding_dim': 8}})
    before = weights(run.model)
    metrics = run.fit()
    assert sorted(metrics) == sorted(
        f'{m}@{k}' for m in ('R', 'N', 'MRR') for k in (5, 10)
    )
    found = load_json(tmp_path / 'metrics.json')
    assert found['metrics'] == metrics
    assert found['protocol'] == {
        'split': 'val',
        'history': 'train+val',
        'mask': 'seen',
    }
    assert found['epochs'] == 4
    assert found['stopped'] == "all 4 'epochs' done"
    assert found['seed'] == 7
    assert found['settings']['data'] == make_data().fingerprint
    assert found['settings']['model'] == {'embedding_dim': 8}
    assert torch.__version__.startswith(found['versions']['torch'])
    assert found['peak_memory_bytes']['process'] > 1e7
    assert [r['epoch'] for r in found['curve']] == [1, 2, 3, 4]
    best = max(found['curve'], key=lambda r: r['metrics']['N@10'])
    assert found['best_epoch'] == best['epoch']
    assert found['metrics'] == best['metrics']
    assert found['curve'][-1]['loss'] < found['curve'][0]['loss']
    # The model has the best weights, and so have the files.
    assert not run.model.training
    again = evaluate(run.model, make_data(), ks=(5, 10))
    assert again.metrics == metrics
    saved = load_tensors(tmp_path / 'model.safetensors', run.model.state_dict())
    assert equal(saved, run.model.state_dict())
    assert not torch.equal(saved['user'], before['user'])
    assert torch.equal(saved['frozen'], before['frozen'])
    vectors = load_tensors(tmp_path / 'embeddings.safetensors')
    assert torch.equal(vectors['item'], saved['item'])
    fingerprint = make_data().fingerprint
    for name in ('model', 'embeddings'):
        metadata = load_metadata(tmp_path / f'{name}.safetensors')
        assert metadata == {'class': 'Toy', 'fingerprint': fingerprint}
    (kept,) = (tmp_path / 'best').iterdir()
    assert kept.name == f'epoch-{best["epoch"]:05d}.safetensors'
    assert list((tmp_path / 'tensorboard').glob('events.out.*'))


def test_the_log_has_a_line_an_epoch_and_some_between(tmp_path: Path) -> None:
    run = make_trainer(tmp_path)
    run.fit()
    records = lines(tmp_path)
    epochs = [r for r in records if 'metrics' in r]
    assert [r['epoch'] for r in epochs] == [1, 2, 3, 4]
    steps = [r for r in records if 'step' in r]
    per_epoch = math.ceil(len(run.loader) / 2)
    first = [r for r in steps if r['epoch'] == 1]
    assert [r['step'] for r in first] == list(range(1, per_epoch + 1))
    assert first[0]['lr'] == 0  # the warm-up starts from zero
    assert first[1]['lr'] == pytest.approx(0.05 / (0.5 * per_epoch))
    assert all(r['targets_per_second'] > 0 and r['grad_norm'] > 0 for r in steps)
    mean = sum(r['loss'] for r in first) / len(first)
    assert epochs[0]['loss'] == pytest.approx(mean, rel=0.05)
    assert epochs[0]['lr'] == first[-1]['lr']


def test_accumulation_takes_the_last_partial_window(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, accumulate=3, batch_size=29)
    run = make_trainer(tmp_path, config=config)
    assert len(run.loader) % 3 != 0
    run.fit()
    assert run.state.total_steps == math.ceil(len(run.loader) / 3)
    assert run.model.losses == len(run.loader)


def test_two_runs_are_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    found = []
    for name, seed in (('a', 7), ('b', 7), ('c', 8)):
        run = make_trainer(tmp_path / name, config=replace(CONFIG, epochs=2, seed=seed))
        run.fit()
        found.append(weights(run.model))
    assert equal(found[0], found[1])
    assert not torch.equal(found[0]['user'], found[2]['user'])


def test_the_test_items_are_not_read(tmp_path: Path) -> None:
    results = []
    for name in ('a', 'b'):
        data = make_data()
        if name == 'b':
            data['user'].test_item = (data['user'].test_item + 1) % ITEMS
        run = make_trainer(tmp_path / name, data=data)
        results.append((run.fit(), weights(run.model)))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])


def scripted(
    monkeypatch: pytest.MonkeyPatch, values: list[float], seen: list[dict[str, Tensor]]
) -> None:
    """Replaces the validation by given values; notes the weights it was shown."""
    script = iter(values)

    def fake(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Evaluation:
        seen.append(weights(model))
        metrics = {'N@10': next(script)}
        rank = torch.ones(1)
        return Evaluation(metrics, rank, rank.long(), 'val', Protocol(), 0.0)

    monkeypatch.setattr(trainer, 'evaluate', fake)


def test_patience_and_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.1, 0.3, 0.3, 0.2, 0.25, 0.9], seen)
    run = make_trainer(tmp_path, config=replace(CONFIG, epochs=9, patience=3))
    assert run.fit() == {'N@10': 0.3}
    found = load_json(tmp_path / 'metrics.json')
    assert len(seen) == 5  # a tie is no improvement
    assert found['best_epoch'] == 2
    assert 'patience' in found['stopped']
    assert equal(weights(run.model), seen[1])
    assert not equal(seen[1], seen[4])


def test_eval_every_also_measures_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    scripted(monkeypatch, [0.1, 0.2, 0.3], seen)
    config = replace(CONFIG, epochs=5, eval_every=2)
    make_trainer(tmp_path, config=config).fit()
    curve = load_json(tmp_path / 'metrics.json')['curve']
    measured = [r['epoch'] for r in curve if r['metrics'] is not None]
    assert measured == [2, 4, 5]


def test_the_metric_is_measured_at_its_own_cutoff(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, metric='MRR@7')
    run = make_trainer(tmp_path, config=config, evaluation=EvalConfig(ks=(5,)))
    assert 'MRR@7' in run.fit()


class Diverging(Toy):
    """Loses its mind at some loss, in the loss or only in the gradient."""

    def __init__(self, at: int, where: str = 'loss') -> None:
        super().__init__()
        self.at, self.where = at, where

    def loss(self, data: HeteroData, batch: PairBatch) -> Tensor:
        value = super().loss(data, batch)
        if self.losses == self.at and self.where == 'loss':
            return value * math.nan
        if self.losses == self.at:
            return value + (self.user - self.user).abs().sqrt().sum()
        return value


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_nan_stops_and_keeps_the_last_good_state(tmp_path: Path, where: str) -> None:
    undisturbed = make_trainer(tmp_path / 'whole')
    undisturbed.fit()
    per_epoch = len(undisturbed.loader)
    run = make_trainer(tmp_path / 'nan', Diverging(per_epoch + 3, where))
    run.settings['class'] = 'Toy'  # which will be mended
    with pytest.raises(NonFiniteLossError, match=r'epoch 2, step 2; the last state'):
        run.fit()
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    state = load_json(tmp_path / 'nan' / 'state' / 'progress.json')['progress']
    assert (state['epoch'], state['step']) == (1, 0)
    mended = make_trainer(tmp_path / 'nan')
    mended.fit()
    assert equal(weights(mended.model), weights(undisturbed.model))


@pytest.mark.parametrize('save_minutes', [5.0, 0.0])
def test_weights_that_overflow_are_not_saved(
    tmp_path: Path, save_minutes: float
) -> None:
    config = replace(CONFIG, save_minutes=save_minutes)
    run = make_trainer(tmp_path, config=config)
    steps = math.ceil(len(run.loader) / config.accumulate)
    at = 2 * steps  # the last step of epoch 2

    def overflow(*_: Any) -> None:
        if run.state.total_steps + 1 == at:
            run.model.item.data[0, 0] = math.inf

    run._stepper.optimizer.register_step_post_hook(overflow)
    message = rf'weights .* infinite in epoch 2, step {steps}; the last state .*--out'
    with pytest.raises(NonFiniteLossError, match=message):
        run.fit()
    state = load_json(tmp_path / 'state' / 'progress.json')['progress']
    assert state['total_steps'] == (steps if save_minutes else at - 1)
    kept = load_tensors(tmp_path / 'state' / 'weights.safetensors')
    assert all(value.isfinite().all() for value in kept.values())
    assert [path.name for path in (tmp_path / 'best').iterdir()] == [
        'epoch-00001.safetensors'
    ]


def test_nan_first_seen_in_validation(tmp_path: Path) -> None:
    class Lost(Toy):
        def score(self, encoded: tuple[Tensor, Tensor], batch: SequenceBatch) -> Tensor:
            return super().score(encoded, batch) * (math.nan if past() else 1)

    def past() -> bool:
        return run.state.epoch > 0

    run = make_trainer(tmp_path, Lost())
    steps = math.ceil(len(run.loader) / CONFIG.accumulate)
    message = rf'validation are NaN in epoch 2, step {steps}; the last state'
    with pytest.raises(NonFiniteLossError, match=message):
        run.fit()
    state = load_json(tmp_path / 'state' / 'progress.json')['progress']
    assert (state['epoch'], state['step']) == (1, steps)  # whose weights are finite


def test_nan_before_anything_was_saved(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, Diverging(1))
    with pytest.raises(ValueError, match=r'loss is nan in epoch 1, step 1; no state'):
        run.fit()


def test_a_model_that_saves_itself(tmp_path: Path) -> None:
    class Saving(Toy):
        def save_pretrained(self, folder: Path, **kwargs: Any) -> None:
            folder.mkdir()
            self.saved = kwargs

    ids = IdMap([f'u{i}' for i in range(USERS)], list(range(ITEMS)))
    run = make_trainer(tmp_path, Saving(), replace(CONFIG, epochs=1), ids=ids)
    metrics = run.fit()
    assert (tmp_path / 'model').is_dir()
    assert not (tmp_path / 'model.safetensors').exists()
    assert run.model.saved['ids'] is ids
    assert run.model.saved['metrics'].items() > metrics.items()
    assert 'mask=seen' in run.model.saved['metrics']['protocol']
    assert run.model.saved['config']['train']['epochs'] == 1
    assert IdMap.load(tmp_path / 'ids.json').users == ids.users


def test_bad_input(tmp_path: Path) -> None:
    for metric in ('NDCG@10', 'N@0', 'N'):
        with pytest.raises(ValueError, match=rf"'metric' .* \(got '{metric}'\)"):
            make_trainer(tmp_path, config=replace(CONFIG, metric=metric))
    with pytest.raises(ValueError, match=r"'epochs' .* \(got 0\)"):
        make_trainer(tmp_path, config=replace(CONFIG, epochs=0))

    for wrong in (1, 2):
        with pytest.raises(ValueError, match=rf"'max_len' .* 3.*\(got {wrong}\)"):
            make_trainer(tmp_path, config=replace(CONFIG, max_len=wrong))
    other = Toy()
    other.max_len = 9
    message = r"'max_len' needs to be that of the model, 9, .*\(got 50\)"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, other)
    blind = replace(CONFIG, epochs=1, max_len=1, split='train+val')
    assert make_trainer(tmp_path / 'blind', config=blind).fit() == {}

    class Empty(PairLoader):
        def __len__(self) -> int:
            return 0

    run = make_trainer(tmp_path)
    run.loader = Empty(make_data())
    with pytest.raises(ValueError, match=r"'loader' .* none"):
        run.fit()


@pytest.mark.parametrize('split', ['val', 'test'])
def test_held_out_items_are_not_trained_on(tmp_path: Path, split: str) -> None:
    data = make_data()
    loader = SequenceLoader(data, split)
    with pytest.raises(ValueError, match=rf"'loader' .* \(got those of '{split}'\)"):
        Trainer(SASRec(ITEMS), data, loader, CONFIG, tmp_path)
    assert not any(tmp_path.iterdir())


def test_loader_and_model_fit_together(tmp_path: Path) -> None:
    data = make_data()
    pairs, sequences = PairLoader(data), SequenceLoader(data, 'train', targets='all')
    with pytest.raises(ValueError, match='a SequenceLoader, which SASRec learns from'):
        Trainer(SASRec(ITEMS), data, pairs, CONFIG, tmp_path)
    with pytest.raises(ValueError, match='a PairLoader, which LightGCN learns from'):
        Trainer(LightGCN(USERS, ITEMS), data, sequences, CONFIG, tmp_path)
    with pytest.raises(ValueError, match=rf"'model' .* {ITEMS} \(got {ITEMS - 1}\)"):
        Trainer(SASRec(ITEMS - 1), data, sequences, CONFIG, tmp_path)
