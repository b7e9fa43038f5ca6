from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hellm_pyg import checkpoint, experiment
from hellm_pyg.assembly import resolve_paths
from hellm_pyg.config import Config, load_config
from hellm_pyg.data.split import history_edges
from hellm_pyg.evaluation import evaluate
from hellm_pyg.recommendation import recommend
from hellm_pyg.run_folder import LOCK
from hellm_pyg.training import trainer
from tests.experiment.configs import SMALL, hellm_config, shop_config
from tests.shop import NUM_ITEMS, NUM_USERS, turn_around, write_llm, write_shop


def test_run_folder_of_phase_one(shop: Path) -> None:
    run = experiment.load_run(shop / 'graph')
    config = resolve_paths(shop_config(shop, 'pretrain_best', *SMALL))
    assert run.config == config == load_config(shop / 'graph' / 'config.yaml')
    vectors = checkpoint.load_tensors(shop / 'graph' / 'embeddings.safetensors')
    assert vectors['user'].shape == (NUM_USERS, 8)
    assert vectors['item'].shape == (NUM_ITEMS, 8)
    assert torch.equal(vectors['item'], run.model.encode(run.data)[1])
    assert not run.model.training
    metrics = json.loads((shop / 'graph' / 'metrics.json').read_text())
    assert metrics['settings']['model']['scope'] == 'batch'
    found = evaluate(run.model, run.data, 'val', max_len=8)
    assert metrics['metrics'] == pytest.approx(found.metrics)


def test_sasrec_smooths_along_the_neighbours_of_the_data(
    shop: Path, tmp_path: Path
) -> None:
    for name, smoothing in (('plain', 0.0), ('smooth', 0.4)):
        config = shop_config(shop, 'sasrec', *SMALL, f'model.smoothing={smoothing}')
        experiment.pretrain(config, tmp_path / name)
        experiment.pretrain(config, tmp_path / name)  # finished before
    plain, smooth = (
        checkpoint.load_tensors(tmp_path / name / 'embeddings.safetensors')['item']
        for name in ('plain', 'smooth')
    )
    assert not torch.allclose(plain, smooth)
    bare = shop_config(
        shop, 'sasrec', *SMALL, 'data.features={}', 'model.smoothing=0.4'
    )
    with pytest.raises(ValueError, match=r"'model.smoothing' needs modalities"):
        experiment.pretrain(bare, tmp_path / 'bare')


def test_phase_two_on_the_tables_of_phase_one(shop: Path, tmp_path: Path) -> None:
    config = hellm_config(
        shop,
        tmp_path,
        'llm.prefix.rank=2',
        'train.precision=fp32',
    )
    metrics = experiment.finetune(config, tmp_path / 'run')
    run = experiment.load_run(tmp_path / 'run')
    assert evaluate(run.model, run.data, 'val', max_len=8).metrics == pytest.approx(
        metrics
    )
    table = checkpoint.load_tensors(shop / 'graph' / 'embeddings.safetensors')['item']
    assert torch.equal(run.model.tables.weights['graph'], table)
    rows = recommend(run.model, run.data, run.ids, ['u01'], [['p001', 'p004']], k=2)
    assert [row.user for row in rows] == ['u01', 'u01', None, None]


def test_a_finished_run_of_other_tables_is_refused(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / 'graph', tmp_path / 'graph')
    overrides = ['llm.prefix.rank=2', f'llm.tables.graph={tmp_path / "graph"}']
    config = hellm_config(shop, tmp_path, *overrides)
    first = experiment.finetune(config, tmp_path / 'run')
    for name in ('state', 'best'):
        shutil.rmtree(tmp_path / 'run' / name)
    assert experiment.finetune(config, tmp_path / 'run') == first
    path = tmp_path / 'graph' / 'embeddings.safetensors'  # of another training
    tensors = checkpoint.load_tensors(path)
    checkpoint.save_tensors(path, {name: -value for name, value in tensors.items()})
    with pytest.raises(ValueError, match=r"run' was trained with other tables than"):
        experiment.finetune(config, tmp_path / 'run')


def taught(shop: Path, runs: dict[str, Path], *overrides: str) -> Config:
    folders = [f'train.distill.runs.{name}={path}' for name, path in runs.items()]
    return shop_config(shop, 'sasrec', *SMALL, *folders, *overrides)


def test_other_runs_teach(shop: Path, tmp_path: Path) -> None:
    gru = shop_config(shop, 'gru4rec', *SMALL)
    experiment.pretrain(gru, tmp_path / 'gru')
    runs = {'gru': tmp_path / 'gru', 'seq': shop / 'seq'}
    for name, weight in (('half', 0.5), ('whole', 1.0)):
        config = taught(shop, runs, f'train.distill.weight={weight}')
        experiment.pretrain(config, tmp_path / name)
        experiment.pretrain(config, tmp_path / name)  # finished before
    half, whole = (
        checkpoint.load_tensors(tmp_path / name / 'embeddings.safetensors')['item']
        for name in ('half', 'whole')
    )
    alone = taught(shop, {'seq': shop / 'seq'}, 'train.distill.weight=0.5')
    experiment.pretrain(alone, tmp_path / 'alone')
    path = tmp_path / 'alone' / 'embeddings.safetensors'
    assert not torch.allclose(half, whole)
    assert not torch.allclose(half, checkpoint.load_tensors(path)['item'])
    run = experiment.load_run(tmp_path / 'half')  # its teachers are not needed
    assert run.config.train.distill is not None
    assert run.config.train.distill.runs == {k: str(v) for k, v in runs.items()}


def test_a_language_model_learns_from_a_run(shop: Path, tmp_path: Path) -> None:
    config = hellm_config(
        shop,
        tmp_path,
        'llm.prefix.rank=2',
        f'train.distill.runs={{seq: {shop / "seq"}}}',
    )
    experiment.finetune(config, tmp_path / 'run')
    metrics = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert [name for name, _ in metrics['settings']['teachers']] == ['seq']
    student = taught(shop, {'llm': tmp_path / 'run'})  # which teaches in turn
    experiment.pretrain(student, tmp_path / 'student')


def test_runs_that_cannot_teach(shop: Path, tmp_path: Path) -> None:
    def refused(message: str, config: Config) -> None:
        with pytest.raises(ValueError, match=message):
            experiment.pretrain(config, tmp_path / 'run')
        assert not (tmp_path / 'run' / 'metrics.json').exists()

    key, seq = 'train.distill.runs', {'seq': shop / 'seq'}
    floor = shop_config(shop, 'lightgcn', 'model={name: Popularity}')
    experiment.pretrain(floor, tmp_path / 'floor')
    for name, path in (
        ('Popularity', tmp_path / 'floor'),
        ('HeLLMPre', shop / 'graph'),
    ):
        refused(
            rf"'{key}' needs models that have learned a softmax .*\(got 'x', {name}\)",
            taught(shop, {'x': path}),
        )
    refused(f"'{key}' needs a run at least", taught(shop, {}, 'train.distill={}'))
    refused(f"'{key}.x' needs to be the folder", taught(shop, {'x': tmp_path}))
    refused(
        rf"'{key}.seq' cannot be taken: .*'train.split' 'train' \(got 'train\+val'",
        taught(shop, seq, 'train.split=train+val'),
    )
    refused(
        rf"'{key}.seq' cannot be taken: .* of 8 items \(got 'train.max_len' 7",
        taught(shop, seq, 'train.max_len=7'),
    )
    refused(
        r"'train.distill' needs a model that is trained \(got ItemKNN",
        shop_config(
            shop, 'sasrec', 'model.name=ItemKNN', f'train.distill.runs.seq={seq["seq"]}'
        ),
    )
    refused(
        r"'train.distill' needs a model that learns a softmax .*\(got LightGCN",
        taught(shop, seq, 'model.name=LightGCN', 'train.num_neg=1'),
    )
    refused(
        r"'train.distill' .* \(got SASRec with objective='bce'\); set it to null",
        taught(shop, seq, 'model.loss=bce', 'train.num_neg=1'),
    )


@pytest.mark.parametrize('name', ['Popularity', 'ItemKNN'])
def test_floors_need_no_training(tmp_path: Path, name: str) -> None:
    config = shop_config(tmp_path, 'sasrec', f'model.name={name}')
    metrics = experiment.pretrain(config, tmp_path / 'run')
    run = experiment.load_run(tmp_path / 'run')
    found = evaluate(run.model, run.data, 'val').metrics
    assert found == pytest.approx(metrics)


def times(run_dir: Path) -> dict[Path, int]:
    """When the files of a run were written, but for the lock, which others touch."""
    paths = [path for path in run_dir.iterdir() if path.name != LOCK]
    return {path: path.stat().st_mtime_ns for path in paths}


def test_a_finished_floor_keeps_its_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = shop_config(tmp_path, 'sasrec', 'model.name=ItemKNN')
    first = experiment.pretrain(config, tmp_path / 'run')
    experiment.evaluate_run(tmp_path / 'run')
    before = times(tmp_path / 'run')
    with caplog.at_level('INFO'):
        assert experiment.pretrain(config, tmp_path / 'run') == first
    assert 'finished before, nothing is done' in caplog.text
    after = times(tmp_path / 'run')
    assert after == before
    assert tmp_path / 'run' / 'evaluation.json' in after
    turn_around(tmp_path)
    with pytest.raises(ValueError, match="run' was trained on other interactions"):
        experiment.pretrain(config, tmp_path / 'run')


@pytest.mark.parametrize('name', ['Popularity', 'ItemKNN'])
def test_a_floor_loads_beside_more_interactions(tmp_path: Path, name: str) -> None:
    config = shop_config(tmp_path, 'sasrec', f'model.name={name}')
    experiment.pretrain(config, tmp_path / 'run')
    first = experiment.load_run(tmp_path / 'run')
    with (tmp_path / 'log.csv').open('a') as file:
        file.write('u00,p001,50\n')
    second = experiment.load_run(tmp_path / 'run')
    train = ('user', 'interacts', 'item')
    sizes = [run.data[train].edge_index.size(1) for run in (first, second)]
    assert sizes[1] == sizes[0] + 1
    assert torch.equal(second.model.edge_index, first.model.edge_index)
    path = tmp_path / 'run' / 'model.safetensors'
    checkpoint.save_tensors(path, {'edge_index': first.model.edge_index})
    with pytest.raises(ValueError, match=r"model\.safetensors' does not fit: it lacks"):
        experiment.load_run(tmp_path / 'run')


@pytest.mark.parametrize('split', ['train+val', 'all'])
def test_training_on_held_out_items(tmp_path: Path, split: str) -> None:
    config = shop_config(
        tmp_path, 'sasrec', 'model.name=Popularity', f'train.split={split}'
    )
    assert experiment.pretrain(config, tmp_path / 'run') == {}
    run = experiment.load_run(tmp_path / 'run')
    every = history_edges(run.data, 'all').item.bincount(minlength=NUM_ITEMS)
    held_out = run.data['user'].test_item
    if split == 'train+val':
        every -= held_out[held_out >= 0].bincount(minlength=NUM_ITEMS)
    assert torch.equal(run.model.encode(run.data), every.float())
    with pytest.raises(ValueError, match=r"'split' needs items .*got 'val' for .*run'"):
        experiment.evaluate_run(tmp_path / 'run', 'val')
    dates = 'data.val_from=102 data.test_from=104'
    for wrong, override in (('val', 'train.split=train'), ('test', dates)):
        with pytest.raises(
            ValueError, match=r"'split' needs items|cannot be evaluated"
        ):
            experiment.evaluate_run(tmp_path / 'run', wrong, override.split())
    if split == 'all':
        with pytest.raises(ValueError, match=r"got 'test' .*train.split='all'"):
            experiment.evaluate_run(tmp_path / 'run')
    else:
        experiment.evaluate_run(tmp_path / 'run')


def test_tables_that_know_held_out_items_are_refused(tmp_path: Path) -> None:
    splits = ('train', 'train+val', 'all')
    for split in splits:
        config = shop_config(tmp_path, 'sasrec', *SMALL, f'train.split={split}')
        experiment.pretrain(config, tmp_path / split)
    llm = f'llm.name={write_llm(tmp_path / "llm")}'
    common = [llm, 'llm.num_layers=null', 'llm.prefix=null', 'llm.token=[graph, seq]']

    def config_of(split: str, table: str, *more: str) -> Config:
        tables = f'llm.tables={{graph: {tmp_path / table}, seq: {tmp_path / table}}}'
        own = [*common, tables, f'train.split={split}', 'train.precision=fp32', *more]
        return shop_config(tmp_path, 'finetune_best', *own)

    for split in splits:  # as a Trainer leaves it that is called by itself
        shutil.copytree(tmp_path / split, tmp_path / f'bare-{split}')
        (tmp_path / f'bare-{split}' / 'config.yaml').unlink()
    for number, split in enumerate(splits):
        for table in splits[number + 1 :]:
            message = rf"'llm.tables.graph' cannot .* '{re.escape(table)}' \(got '"
            for folder in (table, f'bare-{table}'):
                with pytest.raises(ValueError, match=message):
                    experiment.finetune(config_of(split, folder), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    dates = ['data.val_from=102', 'data.test_from=104']
    with pytest.raises(ValueError, match=r"'data.val_from' None \(got 102 here\)"):
        experiment.finetune(config_of('train', 'train', *dates), tmp_path / 'run')
    with pytest.raises(ValueError, match=r"'data.drop_last' 0 \(got 1 here\)"):
        experiment.finetune(
            config_of('train', 'train', 'data.drop_last=1'), tmp_path / 'run'
        )
    experiment.finetune(config_of('train', 'bare-train'), tmp_path / 'bare')
    experiment.finetune(config_of('train+val', 'train'), tmp_path / 'run')
    card = (tmp_path / 'run' / 'model' / 'README.md').read_text()
    assert 'protocol' not in card  # of a validation that was not


def test_training_on_validation_items_goes_to_its_end(tmp_path: Path) -> None:
    overrides = [*SMALL, 'train.patience=1', 'train.epochs=3']
    run_dir = tmp_path / 'run'
    config = shop_config(tmp_path, 'sasrec', *overrides, 'train.split=train+val')
    assert experiment.pretrain(config, run_dir) == {}
    metrics = json.loads((run_dir / 'metrics.json').read_text())
    assert [record['metrics'] for record in metrics['curve']] == [None] * 3
    assert metrics['best_epoch'] == 3
    run = experiment.load_run(run_dir)
    row, *_ = recommend(run.model, run.data, run.ids, ['u01'], k=1)
    assert row.user == 'u01'


def test_same_call_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    first = experiment.pretrain(config, tmp_path / 'run')
    moved = ['train.save_minutes=1', f'data.root={tmp_path / "moved"}']
    again = load_config(tmp_path / 'run' / 'config.yaml', moved)
    assert experiment.pretrain(again, tmp_path / 'run') == first
    other = shop_config(tmp_path, 'sasrec', *SMALL, 'model.dropout=0.1')
    with pytest.raises(ValueError, match=r"'model.dropout' is 0.3 there \(got 0.1\)"):
        experiment.pretrain(other, tmp_path / 'run')


HOLDER = """
import sys
from pathlib import Path
from hellm_pyg.config import load_config
from hellm_pyg.run_folder import claim

run = Path(sys.argv[1])
with claim(run, load_config(run / 'config.yaml'), main=True):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / 'run'
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    found = experiment.pretrain(config, run)
    command, pipe = [sys.executable, '-c', HOLDER, str(run)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == 'held\n'
            with pytest.raises(ValueError, match='in use by another run'):
                experiment.pretrain(config, run)
        finally:
            other.kill()  # which frees the folder
    assert experiment.pretrain(config, run) == found


def test_a_finished_run_needs_no_lock_and_another_one_does(tmp_path: Path) -> None:
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    found = experiment.pretrain(config, tmp_path / 'run')
    for run in (tmp_path / 'run', tmp_path / 'new'):
        (run / '.lock').unlink(missing_ok=True)
        (run / '.lock').mkdir(parents=True)  # as if it could not be written
    assert experiment.pretrain(config, tmp_path / 'run') == found
    (tmp_path / 'file').write_text('')
    for name in ('new', 'file'):
        with pytest.raises(ValueError, match=rf"{name}' needs to be a folder that can"):
            experiment.pretrain(config, tmp_path / name)


def test_a_run_of_before_a_setting_goes_on(tmp_path: Path) -> None:
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    found = experiment.pretrain(config, tmp_path / 'run')
    path = tmp_path / 'run' / 'state' / 'progress.json'
    content = json.loads(path.read_text())
    assert content['settings']['train'].pop('decay') == 'matrices'
    path.write_text(json.dumps(content))
    assert experiment.pretrain(config, tmp_path / 'run') == found
    content['settings']['model']['num_layers'] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'model\.num_layers was 7'):
        experiment.pretrain(config, tmp_path / 'run')


def test_a_stopped_run_goes_on_elsewhere(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(folder: Path, *overrides: str) -> Config:
        teacher = f'train.distill.runs={{seq: {folder / "seq"}}}'
        return hellm_config(folder, folder, 'llm.prefix.rank=2', teacher, *overrides)

    def too_large(*args: object, **kwargs: object) -> None:
        raise MemoryError

    there, here, last = (tmp_path / name for name in ('there', 'here', 'last'))
    shutil.copytree(shop, there)
    whole = experiment.finetune(config(there), there / 'whole')
    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'evaluate', too_large)
        with pytest.raises(MemoryError):
            experiment.finetune(config(there), there / 'run')
    shutil.move(there, here)
    found = experiment.finetune(config(here, 'eval.batch_size=5'), here / 'run')
    assert found == pytest.approx(whole)
    steps = [json.loads(line) for line in (here / 'run' / 'log.jsonl').open()]
    assert len({(one['epoch'], one.get('step')) for one in steps}) == len(steps)
    run = experiment.load_run(here / 'run')  # which knows where all lies now
    assert run.config == resolve_paths(config(here, 'eval.batch_size=5'))
    shutil.move(here, last)  # a finished run, too
    assert experiment.finetune(config(last), last / 'run') == found
    for table, message in (
        (last / 'seq', 'belongs to another run: tables was '),
        ('random:8', r"'llm.tables.graph' is .*\(got 'random:8'\)"),
    ):
        other = config(last, f'llm.tables.graph={table}')
        with pytest.raises(ValueError, match=message):
            experiment.finetune(other, last / 'run')


def test_moved_files_of_another_content_are_another_run(tmp_path: Path) -> None:
    run, moved = tmp_path / 'run', tmp_path / 'moved'
    found = experiment.pretrain(shop_config(tmp_path, 'sasrec', *SMALL), run)
    moved.mkdir()
    elsewhere = shop_config(moved, 'sasrec', *SMALL)
    assert experiment.pretrain(elsewhere, run) == found
    text = np.load(moved / 'text.npy')
    np.save(moved / 'text.npy', -text)
    with pytest.raises(ValueError, match="belongs to another run: data was '"):
        experiment.pretrain(elsewhere, run)
    np.save(moved / 'text.npy', text)
    turn_around(moved)
    with pytest.raises(ValueError, match="belongs to another run: data was '"):
        experiment.pretrain(elsewhere, run)
    shutil.rmtree(run / 'state')
    with pytest.raises(ValueError, match="run' was trained on other interactions"):
        experiment.pretrain(elsewhere, run)
    without = shop_config(tmp_path, 'sasrec', *SMALL, 'data.features={}')
    with pytest.raises(ValueError, match=r"another configuration: 'data\.features' is"):
        experiment.pretrain(without, run)


def test_a_finished_run_without_state_knows_its_teachers(
    shop: Path, tmp_path: Path
) -> None:
    for name in ('seq', 'moved'):
        shutil.copytree(shop / 'seq', tmp_path / name)
    found = experiment.pretrain(taught(shop, {'a': tmp_path / 'seq'}), tmp_path / 'run')
    for name in ('run/state', 'seq'):
        shutil.rmtree(tmp_path / name)
    # Where they are said to lie nothing is read.
    again = taught(shop, {'a': tmp_path / 'seq'})
    assert experiment.pretrain(again, tmp_path / 'run') == found
    again = taught(shop, {'a': tmp_path / 'moved'})
    assert experiment.pretrain(again, tmp_path / 'run') == found
    own = shop_config(shop, 'sasrec', *SMALL, 'train.seed=3')
    experiment.pretrain(own, tmp_path / 'other')
    with pytest.raises(ValueError, match=r"run' was trained with other teachers than"):
        experiment.pretrain(taught(shop, {'a': tmp_path / 'other'}), tmp_path / 'run')


def test_phases_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'pretrain' needs a recipe with a section"):
        experiment.pretrain(load_config('finetune_best'), tmp_path / 'run')
    with pytest.raises(ValueError, match="'finetune' needs a recipe with a section"):
        experiment.finetune(load_config('sasrec'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    run = tmp_path / 'run'
    config = shop_config(tmp_path, 'sasrec', 'model.name=Popularity')
    experiment.pretrain(config, run)
    path = run / 'config.yaml'
    whole = path.read_text()
    path.write_text(whole[: whole.index('train:')])
    for use in (experiment.load_run, lambda run: experiment.pretrain(config, run)):
        with pytest.raises(ValueError, match=r"config\.yaml' is damaged.*'train'"):
            use(run)
    path.write_text(whole)
    (run / 'metrics.json').write_text('[]')
    with pytest.raises(ValueError, match=r"metrics\.json' is damaged.*got a list"):
        experiment.evaluate_run(run)
    for content, message in (
        ('{}', "lacks 'metrics'"),
        ('{"metrics": {}, "settings": [1]}', r"'settings' .* dict \(got \[1\]\)"),
    ):
        (run / 'metrics.json').write_text(content)
        with pytest.raises(ValueError, match=rf"metrics\.json' is damaged.*{message}"):
            experiment.load_run(run)


def test_folder_of_a_run_that_failed_at_once_can_be_used(tmp_path: Path) -> None:
    wrong = shop_config(tmp_path, 'sasrec', *SMALL, 'train.lr=1e30', 'train.clip=null')
    with pytest.raises(ValueError, match='no state had been saved yet'):
        experiment.pretrain(wrong, tmp_path / 'run')
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    experiment.pretrain(config, tmp_path / 'run')
    assert experiment.load_run(tmp_path / 'run').config.train.lr == config.train.lr
    with pytest.raises(ValueError, match=r"holds a run of another .*'train.lr'"):
        experiment.pretrain(wrong, tmp_path / 'run')


def test_a_run_does_not_go_on_with_another_table_or_backbone(
    shop: Path, tmp_path: Path
) -> None:
    shutil.copytree(shop / 'seq', tmp_path / 'seq')
    config = shop_config(
        shop,
        'finetune_best',
        f'llm.name={write_llm(tmp_path / "llm")}',
        'llm.num_layers=null',
        f'llm.tables.graph={shop / "graph"}',
        f'llm.tables.seq={tmp_path / "seq"}',
        'llm.train_tables=[]',
        'train.epochs=1',
    )
    first = experiment.finetune(config, tmp_path / 'run')
    assert experiment.finetune(config, tmp_path / 'run') == first
    path = tmp_path / 'seq' / 'embeddings.safetensors'
    vectors, metadata = checkpoint.load_tensors(path), checkpoint.load_metadata(path)
    checkpoint.save_tensors(path, {'item': 2 * vectors['item']}, metadata)
    with pytest.raises(ValueError, match=r"belongs to another run: tables was '"):
        experiment.finetune(config, tmp_path / 'run')
    checkpoint.save_tensors(path, vectors, metadata)
    weights = tmp_path / 'llm' / 'model.safetensors'
    tensors = checkpoint.load_tensors(weights)
    tensors['embed_tokens.weight'] *= 2
    checkpoint.save_tensors(weights, tensors, {'format': 'pt'})
    with pytest.raises(ValueError, match=r"belongs to another run: backbone was '"):
        experiment.finetune(config, tmp_path / 'run')


@pytest.mark.parametrize('weights', ['trained', 'random'])
def test_a_whole_backbone_is_trained_saved_and_recommends(
    shop: Path, tmp_path: Path, weights: str
) -> None:
    config = hellm_config(
        shop,
        tmp_path,
        f'llm.weights={weights}',
        'llm.lora=null',
        'train.epochs=2',
        'data.sample=0.8',
    )
    metrics = experiment.finetune(config, tmp_path / 'run')
    for file in (tmp_path / 'llm').iterdir():  # nothing of it is needed any more
        file.unlink()
    run = experiment.load_run(tmp_path / 'run')
    found = evaluate(run.model, run.data, 'val', max_len=8)
    assert found.metrics == pytest.approx(metrics)
    assert found.user.numel() == round(0.8 * NUM_USERS)
    assert {p.dtype for p in run.model.backbone.parameters()} == {torch.float32}
    rows = recommend(run.model, run.data, run.ids, run.ids.users[:3], [['p001']], k=2)
    assert len(rows) == 8


def test_a_finished_run_needs_no_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = shop_config(tmp_path, 'sasrec', *SMALL)
    first = experiment.pretrain(config, tmp_path / 'run')
    for name in ('state', 'best'):
        shutil.rmtree(tmp_path / 'run' / name)
    before = times(tmp_path / 'run')
    with caplog.at_level('INFO'):
        assert experiment.pretrain(config, tmp_path / 'run') == first
    assert 'finished before, nothing is done' in caplog.text
    assert times(tmp_path / 'run') == before
    turn_around(tmp_path)
    again = load_config(tmp_path / 'run' / 'config.yaml')
    with pytest.raises(ValueError, match='was trained on other interactions or'):
        experiment.pretrain(again, tmp_path / 'run')


def test_tables_of_other_interactions_are_refused(tmp_path: Path) -> None:
    files, log = write_shop(tmp_path), tmp_path / 'log.csv'
    # Days of all users rather than of one after the other.
    log.write_text(re.sub(r',\d*(\d\d)$', r',10\1', log.read_text(), flags=re.M))
    dates = ['data.val_from=1003', 'data.test_from=1004']
    for name, own in (
        ('own', []),
        ('plain', ['data.features={}', 'data.knn=2', 'data.sample=0.5']),
        ('dated', dates),
        ('dated_again', [*dates, 'train.split=train+val']),
    ):
        config = load_config('sasrec', [*files, *SMALL, *own])
        experiment.pretrain(config, tmp_path / name)
    llm = [f'llm.name={write_llm(tmp_path / "llm")}', 'llm.num_layers=null']
    llm += ['train.precision=fp32']

    def finetune(table: str, run: str, *own: str) -> None:
        tables = f'llm.tables={{graph: {tmp_path / table}, seq: {tmp_path / table}}}'
        more = [*files, *llm, 'llm.token=[graph, seq]', tables, *own]
        experiment.finetune(load_config('finetune_best', more), tmp_path / run)

    # Other features, neighbours and users; held-out items folded in.
    finetune('plain', 'first')
    finetune('dated', 'second', *dates)
    finetune('dated_again', 'third', *dates, 'train.split=train+val')
    turn_around(tmp_path)
    message = r"'llm.tables.graph' was trained on other interactions .*own'\): train"
    with pytest.raises(ValueError, match=message):
        finetune('own', 'run')
    assert not (tmp_path / 'run').exists()
