"""Second trainings, on the validation items, too, with what validation has chosen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hellm_pyg import checkpoint, experiment
from hellm_pyg.config import Config, load_config
from hellm_pyg.nn.models import Ensemble
from tests.shop import turn_around, write_shop

SMALL = ['model.embedding_dim=8', 'train.epochs=4', 'train.patience=9']
BEST = 2


def shop_config(folder: Path, recipe: str, *overrides: str) -> Config:
    return load_config(recipe, [*write_shop(folder), *overrides])


def again(former: Path, *overrides: str) -> list[str]:
    return ['train.split=train+val', f'train.refit={former}', *overrides]


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two runs, best after two epochs, and their ensemble."""
    folder = tmp_path_factory.mktemp('shop')
    for name in ('seq', 'other'):
        config = shop_config(
            folder, 'sasrec', *SMALL, f'train.seed={len(name)}', 'train.schedule=linear'
        )
        experiment.pretrain(config, folder / name)
        path = folder / name / 'metrics.json'
        checkpoint.save_json(
            path, {**checkpoint.load_json(path, dict), 'best_epoch': BEST}
        )
    experiment.ensemble(ensemble_config(folder, ''), folder / 'ensemble')
    return folder


def ensemble_config(shop: Path, suffix: str, *overrides: str) -> Config:
    return shop_config(
        shop,
        'ensemble',
        'ensemble.members={}',
        f'ensemble.members.seq={shop / f"seq{suffix}"}',
        f'ensemble.members.other={shop / f"other{suffix}"}',
        *overrides,
    )


def refit(shop: Path, name: str, out: Path) -> None:
    config = shop_config(
        shop,
        'sasrec',
        *SMALL,
        f'train.seed={len(name)}',
        'train.schedule=linear',
        *again(shop / name),
    )
    assert experiment.pretrain(config, out) == {}


def test_schedule_of_the_former_run_ends_at_its_best_epoch(
    shop: Path, tmp_path: Path
) -> None:
    refit(shop, 'seq', tmp_path / 'run')
    former = checkpoint.load_json(shop / 'seq' / 'metrics.json', dict)
    found = checkpoint.load_json(tmp_path / 'run' / 'metrics.json', dict)
    rates = [record['lr'] for record in found['curve']]
    assert len(rates) == found['best_epoch'] == BEST
    assert rates == pytest.approx([r['lr'] for r in former['curve'][:BEST]], rel=0.3)
    assert rates[-1] > 0  # the schedule is that of four epochs
    assert found['settings']['refit'] == former['metrics']
    assert all(record['metrics'] is None for record in found['curve'])


def test_equals_a_training_of_so_many_epochs(shop: Path, tmp_path: Path) -> None:
    # With a constant learning rate the two say the same.
    own = [*SMALL, 'train.schedule=constant']
    experiment.pretrain(shop_config(shop, 'sasrec', *own), tmp_path / 'former')
    path = tmp_path / 'former' / 'metrics.json'
    found = checkpoint.load_json(path, dict)
    checkpoint.save_json(path, {**found, 'best_epoch': BEST})
    more = again(tmp_path / 'former')
    experiment.pretrain(shop_config(shop, 'sasrec', *own, *more), tmp_path / 'refit')
    plain = ['train.split=train+val', f'train.epochs={BEST}']
    experiment.pretrain(shop_config(shop, 'sasrec', *own, *plain), tmp_path / 'plain')
    first, second = (
        checkpoint.load_tensors(tmp_path / name / 'model.safetensors')
        for name in ('refit', 'plain')
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_teachers_are_those_of_the_whole_training(shop: Path, tmp_path: Path) -> None:
    key = 'train.distill.runs'
    own = [*SMALL, f'{key}.seq={shop / "seq"}']
    experiment.pretrain(shop_config(shop, 'sasrec', *own), tmp_path / 'former')
    refit(shop, 'seq', tmp_path / 'seq')
    more = [*SMALL, *again(tmp_path / 'former')]
    config = shop_config(shop, 'sasrec', *more, f'{key}.seq={tmp_path / "seq"}')
    experiment.pretrain(config, tmp_path / 'run')
    for override, message in (
        (f'{key}.seq={shop / "seq"}', r"seq' cannot be taken: .*'train.split' 'train'"),
        (f'{key}.other={tmp_path / "seq"}', r"'train.distill.runs' is \['seq'\] in"),
        ('train.distill=null', r"'train.distill.runs' is \['seq'\] in '.*former"),
        ('train.distill={runs: {seq: x}, weight: 0.2}', r"'train.distill.weight'"),
    ):
        config = shop_config(shop, 'sasrec', *more, override)
        with pytest.raises(ValueError, match=message):
            experiment.pretrain(config, tmp_path / 'refused')


def test_ensemble_takes_the_weights_over(shop: Path) -> None:
    for name in ('seq', 'other'):
        refit(shop, name, shop / f'{name}_again')
    out = shop / 'ensemble_again'
    config = ensemble_config(shop, '_again', *again(shop / 'ensemble'))
    assert experiment.ensemble(config, out) == {}
    former = checkpoint.load_json(shop / 'ensemble' / 'metrics.json', dict)
    found = checkpoint.load_json(out / 'metrics.json', dict)
    assert found['weights'] == former['weights']
    assert found['refit'] == former['metrics']
    run = experiment.load_run(out)
    assert isinstance(run.model, Ensemble)
    assert run.model.weights == former['weights']
    experiment.evaluate_run(out, 'test')
    with pytest.raises(ValueError, match=r"'split' needs items that were not trained"):
        experiment.evaluate_run(out, 'val')


def test_members_of_an_ensemble_are_trained_on_the_same(
    shop: Path, tmp_path: Path
) -> None:
    config = ensemble_config(shop, '', *again(shop / 'ensemble'))
    with pytest.raises(ValueError, match=r"'train.split' 'train' \(got 'train\+val'"):
        experiment.ensemble(config, tmp_path / 'run')
    config = ensemble_config(shop, '', 'train.split=train+val')
    with pytest.raises(ValueError, match=r"'train.refit' needs .*ensemble"):
        experiment.ensemble(config, tmp_path / 'run')


def test_other_settings_are_refused(shop: Path, tmp_path: Path) -> None:
    config = shop_config(shop, 'sasrec', *SMALL, *again(shop / 'seq'))
    message = r"'train.schedule' is 'linear' in '.*seq' \(got 'constant'\)"
    with pytest.raises(ValueError, match=message):
        experiment.pretrain(config, tmp_path / 'run')


def test_other_neighbours_are_refused(shop: Path, tmp_path: Path) -> None:
    own = [*SMALL, 'train.seed=3', 'train.schedule=linear', 'data.knn=2']
    config = shop_config(shop, 'sasrec', *own, *again(shop / 'seq'))
    with pytest.raises(ValueError, match=r"'data.knn' is \d+ in '.*seq' \(got 2\)"):
        experiment.pretrain(config, tmp_path / 'run')


def test_run_without_a_choice_is_refused(shop: Path, tmp_path: Path) -> None:
    own = [*SMALL, 'train.split=train+val']
    experiment.pretrain(shop_config(shop, 'sasrec', *own), tmp_path / 'blind')
    config = shop_config(shop, 'sasrec', *SMALL, *again(tmp_path / 'blind'))
    with pytest.raises(ValueError, match=r"'train.refit' needs .*train.split='train\+"):
        experiment.pretrain(config, tmp_path / 'run')
    shutil.copytree(shop / 'seq', tmp_path / 'half')
    (tmp_path / 'half' / 'metrics.json').unlink()
    config = shop_config(shop, 'sasrec', *SMALL, *again(tmp_path / 'half'))
    with pytest.raises(ValueError, match=r"'train.refit' needs .*finished run"):
        experiment.pretrain(config, tmp_path / 'run')


def test_without_validation_items_nothing_is_taken_over(
    shop: Path, tmp_path: Path
) -> None:
    config = shop_config(shop, 'sasrec', *SMALL, f'train.refit={shop / "seq"}')
    with pytest.raises(ValueError, match=r"'train.refit' needs 'train.split'.*'train'"):
        experiment.pretrain(config, tmp_path / 'run')


def turn(folder: Path) -> None:
    """Turns the order of all interactions of a shop."""
    log = folder / 'log.csv'
    first, *rows = log.read_text().splitlines()
    rows = [
        row.rpartition(',')[0] + f',{10**6 - int(row.split(",")[2])}' for row in rows
    ]
    log.write_text('\n'.join([first, *rows, '']))


def test_other_data_are_refused(shop: Path, tmp_path: Path) -> None:
    own = [*SMALL, 'train.seed=3', 'train.schedule=linear', *again(shop / 'seq')]

    def refused(message: str, *overrides: str) -> None:
        config = load_config('sasrec', [*files, *own, *overrides])
        with pytest.raises(ValueError, match=rf"'train.refit' needs a run .*{message}"):
            experiment.pretrain(config, tmp_path / 'run')

    files = write_shop(tmp_path)
    # Items that validation chose by may be those of this test.
    dates = ['data.val_from=102', 'data.test_from=104']
    refused(r"'data.test_from' is None in '.*seq' \(got 104\)", *dates)
    refused(
        r"'data.features' is \['text'\] in '.*seq' \(got \[\]\)", 'data.features={}'
    )
    turn_around(tmp_path)
    refused('same data: .*trained on other interactions or features of the same users')
    for name in ('log.csv', 'items.csv'):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace('p003', 'q003'))
    refused('same data: .*trained on other data: 30 users')


def test_counting_models_check_the_former_run(tmp_path: Path) -> None:
    own = ['model.name=Popularity']

    def config(*overrides: str) -> Config:
        return shop_config(tmp_path, 'sasrec', *own, *overrides)

    with pytest.raises(ValueError, match=r"'train.refit' needs to be the folder of a"):
        experiment.pretrain(config(*again(tmp_path / 'nothing')), tmp_path / 'run')
    former = experiment.pretrain(config(), tmp_path / 'former')
    alone = f'train.refit={tmp_path / "former"}'
    with pytest.raises(ValueError, match=r"'train.refit' needs 'train.split'"):
        experiment.pretrain(config(alone), tmp_path / 'run')
    experiment.pretrain(config(*again(tmp_path / 'former')), tmp_path / 'run')
    found = checkpoint.load_json(tmp_path / 'run' / 'metrics.json', dict)
    assert found['refit'] == former
    assert found['metrics'] == {}


@pytest.mark.parametrize(
    ('recipe', 'overrides', 'message'),
    [
        ('sasrec', ['model.dropout=0.4'], r"'model.dropout' of 'other' is .*got 0.4\)"),
        ('gru4rec', [], "'model.[a-z_]+' of 'other' is "),
    ],
)
def test_members_of_other_models_are_refused(
    shop: Path, tmp_path: Path, recipe: str, overrides: list[str], message: str
) -> None:
    members = []
    for name, kind, own in (('seq', 'sasrec', []), ('other', recipe, overrides)):
        more = SMALL if kind == 'sasrec' else []
        config = shop_config(shop, kind, *more, *own, 'train.split=train+val')
        experiment.pretrain(config, tmp_path / name)
        members.append(f'ensemble.members.{name}={tmp_path / name}')
    config = ensemble_config(shop, '', *members, *again(shop / 'ensemble'))
    with pytest.raises(ValueError, match=f"'train.refit' needs .*{message}"):
        experiment.ensemble(config, tmp_path / 'run')
