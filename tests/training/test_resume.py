"""A run that was stopped, however, ends as the undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hellm_pyg import checkpoint
from hellm_pyg.checkpoint import load_json, load_tensors
from hellm_pyg.config import EvalConfig
from hellm_pyg.training import Trainer, trainer
from hellm_pyg.training.folder import TrainingFolder
from hellm_pyg.training.state import Progress
from tests.devices import DEVICES, accelerator_on
from tests.training.test_trainer import lines, weights
from tests.training.toy import CONFIG, Toy, kill_at, make_data, make_trainer

ROOT = Path(__file__).parents[2]
EAGER = replace(CONFIG, save_minutes=0.0)  # a state after every step


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    torch.set_num_threads(1)
    run = make_trainer(tmp_path_factory.mktemp('run'))
    run.fit()
    return run


def assert_same(run: Trainer, undisturbed: Trainer) -> None:
    ours, theirs = weights(run.model), weights(undisturbed.model)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name

    def final(of: Trainer) -> dict[str, Tensor]:  # the last epoch, not the best
        return load_tensors(of.run_dir / 'state' / 'weights.safetensors')

    for name, value in final(undisturbed).items():
        assert torch.equal(final(run)[name], value), name

    def told(of: Trainer) -> list[dict[str, Any]]:
        drop = ('seconds', 'eval_seconds', 'targets_per_second')
        return [
            {k: v for k, v in r.items() if k not in drop} for r in lines(of.run_dir)
        ]

    epochs = [r for r in told(run) if 'metrics' in r]
    assert epochs == [r for r in told(undisturbed) if 'metrics' in r]
    steps = [(r['epoch'], r['step']) for r in told(run) if 'step' in r]
    assert len(steps) == len(set(steps))  # nothing is told twice


def test_killed_at_any_moment(tmp_path: Path, undisturbed: Trainer) -> None:
    per_epoch = len(undisturbed.loader)
    moments = {  # losses before SIGKILL, minutes between states
        'before any state': (3, 60.0),
        'in the middle of an epoch, an old state': (per_epoch + 5, 60.0),
        'in the middle of a window, a state a step': (2 * per_epoch + 4, 0.0),
    }
    script = [sys.executable, '-m', 'tests.training.toy', tmp_path, json.dumps(moments)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run(script, cwd=ROOT, env=environment, check=True, timeout=200)
    epoch_and_step = []
    for name in moments:
        run = make_trainer(tmp_path / name)
        assert not (tmp_path / name / 'metrics.json').exists()
        path = tmp_path / name / 'state' / 'progress.json'
        if path.exists():
            state = load_json(path)['progress']
            epoch_and_step.append((state['epoch'], state['step']))
        run.fit()
        assert_same(run, undisturbed)
    assert epoch_and_step == [(1, 0), (2, 1)]


@pytest.mark.parametrize('device', DEVICES)
def test_interrupted_on_a_device(tmp_path: Path, device: str) -> None:
    with accelerator_on(device) as accelerator:

        def run(name: str, model: Toy) -> Trainer:
            return make_trainer(tmp_path / name, model, accelerator=accelerator)

        whole = run('whole', Toy())
        whole.fit()
        stopped = run('parts', Toy(kill_at(len(whole.loader) + 5, signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            stopped.fit()
        (generators,) = load_json(tmp_path / 'parts' / 'state' / 'random.json')
        assert ('cuda' in generators) == (device == 'cuda')
        resumed = run('parts', Toy())
        resumed.fit()
    expected = weights(whole.model)
    assert {value.device.type for value in weights(resumed.model).values()} == {device}
    for name, value in weights(resumed.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    told = [
        [r['metrics'] for r in lines(of.run_dir) if 'metrics' in r]
        for of in (whole, resumed)
    ]
    assert told[0] == [pytest.approx(metrics, abs=1e-6) for metrics in told[1]]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    tmp_path: Path,
    undisturbed: Trainer,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = len(undisturbed.loader) + 3
    former = signal.getsignal(number)
    run = make_trainer(tmp_path, Toy(kill_at(at, number)))
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert signal.getsignal(number) is former
    said = capsys.readouterr().err
    assert 'Interrupted in epoch 2, after 2 steps' in said
    assert f"'{tmp_path / 'state'}': the same command goes on" in said
    state = load_json(tmp_path / 'state' / 'progress.json')['progress']
    assert (state['epoch'], state['step']) == (1, 2)
    resumed = make_trainer(tmp_path)
    resumed.fit()
    assert resumed.model.losses < undisturbed.model.losses  # it did not start over
    assert_same(resumed, undisturbed)


@pytest.mark.skipif(os.name == 'nt', reason='needs a POSIX terminal')
def test_ctrl_c_in_a_terminal(tmp_path: Path, undisturbed: Trainer) -> None:
    import termios

    code = (
        'import sys, time, torch; from tests.training.toy import Toy, make_trainer\n'
        'torch.set_num_threads(1)\n'
        'make_trainer(sys.argv[1], Toy(lambda n: time.sleep(0.04))).fit()'
    )
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    process = subprocess.Popen(
        [sys.executable, '-c', code, tmp_path],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: os.login_tty(its_end),
    )
    os.close(its_end)
    shown, pressed = '', False
    with suppress(OSError):  # Linux ends so; other systems read nothing
        while part := os.read(terminal, 4096):
            shown += part.decode(errors='replace')
            if not pressed and re.search(r'<00:\d\d, +[\d.]+step/s', shown):
                pressed = os.write(terminal, b'\x03') > 0
    os.close(terminal)
    assert process.wait(60) != 0
    assert pressed
    assert 'the same command goes on' in shown
    run = make_trainer(tmp_path)
    run.fit()
    assert 0 < run.model.losses < undisturbed.model.losses
    assert_same(run, undisturbed)


def test_a_request_to_stop_may_come_twice(tmp_path: Path, undisturbed: Trainer) -> None:
    def twice(losses: int) -> None:
        if losses == 3:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, Toy(twice)).fit()
    state = load_json(tmp_path / 'state' / 'progress.json')['progress']
    assert (state['epoch'], state['step']) == (0, 2)
    run = make_trainer(tmp_path)
    run.fit()
    assert_same(run, undisturbed)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice(losses: int) -> None:
        if losses == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run = make_trainer(tmp_path, Toy(twice))
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert run.state.step == 1  # the step was not finished
    assert not (tmp_path / 'state').exists()


def test_interrupted_in_the_validation(
    tmp_path: Path, undisturbed: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = trainer.evaluate, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'evaluate', interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path).fit()
    run = make_trainer(tmp_path)
    run.fit()
    assert run.model.losses == 2 * len(undisturbed.loader)  # epochs 3 and 4
    assert_same(run, undisturbed)


def test_out_of_memory_in_the_validation(
    tmp_path: Path, undisturbed: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = trainer.evaluate, []

    def too_large(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError('out of memory')
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'evaluate', too_large)
        with pytest.raises(torch.OutOfMemoryError):
            make_trainer(tmp_path).fit()
    smaller = EvalConfig(ks=(5, 10), batch_size=3)
    run = make_trainer(tmp_path, evaluation=smaller)
    run.fit()
    assert run.model.losses == 2 * len(undisturbed.loader)  # epochs 3 and 4
    assert_same(run, undisturbed)


def test_epochs_without_a_validation_are_saved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], TrainingFolder.save

    def noted(folder: TrainingFolder, progress: Progress) -> None:
        saved.append((progress.epoch, progress.step > 0))
        save(folder, progress)

    monkeypatch.setattr(TrainingFolder, 'save', noted)
    make_trainer(tmp_path / 'a', config=replace(CONFIG, epochs=2, eval_every=2)).fit()
    assert saved == [(1, False), (1, True), (2, False)]
    saved.clear()
    make_trainer(tmp_path / 'b', config=replace(CONFIG, epochs=1, split='all')).fit()
    assert saved == [(1, False)]


def test_a_full_disk_keeps_the_old_state(
    tmp_path: Path, undisturbed: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) < 9:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, 'write_bytes', full)
        with pytest.raises(OSError, match='No space left'):
            make_trainer(tmp_path, config=EAGER).fit()
    assert not list(tmp_path.glob('.*'))
    run = make_trainer(tmp_path)
    run.fit()
    assert 0 < run.model.losses < undisturbed.model.losses
    assert_same(run, undisturbed)


def test_a_finished_run_without_its_state_is_kept(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    shutil.rmtree(tmp_path / 'state')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    run = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"'run_dir' .* finished run without its 's"):
        run.fit()
    assert run.model.losses == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
    assert make_trainer(tmp_path).fit(fresh=True)
    assert (tmp_path / 'state').is_dir()


def test_another_last_epoch_is_another_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, last_epoch=3).fit()
    with pytest.raises(ValueError, match='last_epoch was 3 and is 2'):
        make_trainer(tmp_path, last_epoch=2).fit()
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=rf"'last_epoch' .*\(got {wrong}\)"):
            make_trainer(tmp_path, last_epoch=wrong)


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, undisturbed: Trainer
) -> None:
    metrics = make_trainer(tmp_path).fit()
    before = (tmp_path / 'metrics.json').read_bytes()
    run = make_trainer(tmp_path)
    assert run.fit() == metrics
    assert run.model.losses == 0
    assert (tmp_path / 'metrics.json').read_bytes() == before
    assert_same(run, undisturbed)


def test_killed_while_writing_the_model(
    tmp_path: Path, undisturbed: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError('killed')

    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'export', fail)
        with pytest.raises(RuntimeError, match='killed'):
            make_trainer(tmp_path).fit()
    run = make_trainer(tmp_path)
    run.fit()
    assert run.model.losses == 0
    assert (tmp_path / 'model.safetensors').is_file()
    assert_same(run, undisturbed)


def stopped(run_dir: Path, settings: dict[str, Any] | None = None) -> None:
    run = make_trainer(run_dir, Toy(kill_at(20, signal.SIGINT)), settings=settings)
    with pytest.raises(KeyboardInterrupt):
        run.fit()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    for config, problem in (
        (replace(CONFIG, lr=0.5), r'train\.lr was 0\.05 and is 0\.5'),
        (
            replace(CONFIG, seed=1, epochs=9),
            r'epochs was 4 and is 9; train\.seed was 7',
        ),
    ):
        with pytest.raises(ValueError, match=problem):
            make_trainer(tmp_path, config=config).fit()
    with pytest.raises(ValueError, match=r"eval\.mask was 'seen' and is 'none'"):
        make_trainer(
            tmp_path, evaluation=EvalConfig((5, 10), batch_size=16, mask='none')
        ).fit()
    changed = make_trainer(tmp_path)
    changed.loader.batch_size = 3  # the configuration has the former number
    other = Trainer(Toy(), make_data(), changed.loader, CONFIG, tmp_path)
    own = {'batch_size': 3, 'sampling': 'interaction', 'seed': 5}
    assert other.settings['loader'] == own
    with pytest.raises(ValueError, match=r'loader\.batch_size was None and is 3'):
        other.fit()
    data = make_data()
    data.fingerprint = 'other'
    with pytest.raises(ValueError, match=r"data was '60-40-\d+' and is 'other'"):
        make_trainer(tmp_path, data=data).fit()
    with pytest.raises(ValueError, match=r'model\.width was None and is 3'):
        make_trainer(tmp_path, settings={'model': {'width': 3}}).fit()
    with pytest.raises(ValueError, match=r'model was None and is \{\}'):
        make_trainer(tmp_path, settings={'model': {}}).fit()


def test_a_setting_inside_a_section_counts(tmp_path: Path) -> None:
    stopped(tmp_path, {'model': {'width': 3}, 'llm': {'lora': {'r': 4}}})
    for model, lora, problem in (
        ({'width': 3, 'depth': 2}, {'r': 4}, r'model\.depth was None and is 2'),
        ({}, {'r': 4}, r'model was None and is \{\}; model\.width was 3 and is None'),
        ({'width': 3}, {'r': 4, 'bias': 'all'}, r"lora\.bias was None and is 'all'"),
    ):
        settings = {'model': model, 'llm': {'lora': lora}}
        with pytest.raises(ValueError, match=problem):
            make_trainer(tmp_path, settings=settings).fit()


def test_a_section_of_before_a_setting_has_its_default(tmp_path: Path) -> None:
    settings = {'llm': {'name': 'tiny', 'head': 'tied', 'smoothing': {'k': 3}}}
    stopped(tmp_path, settings)
    path = tmp_path / 'state' / 'progress.json'
    content = load_json(path)
    for section, key in (
        ('train', 'betas'),
        ('train', 'distill'),
        ('train', 'schedule'),  # which is not the default
        ('eval', 'mask'),
    ):
        del content['settings'][section][key]
    path.write_text(json.dumps(content))
    llm: dict[str, Any] = {**settings['llm'], 'dropout': 0.0}
    llm['smoothing'] = {'k': 3, 'modalities': True}
    plain = replace(CONFIG, schedule='constant')
    for own, part, problem in (
        (llm, CONFIG, r"run: train\.schedule was 'constant' and is 'cosine'\. Go"),
        ({**llm, 'dropout': 0.1}, plain, r'run: llm\.dropout was 0\.0 and is 0\.1\. G'),
        ({**llm, 'size': 1}, plain, r'run: llm\.size was None and is 1\. Go'),
        (
            {**llm, 'smoothing': {'k': 3, 'weight': 0.5}},
            plain,
            r'run: llm\.smoothing\.weight was 0\.2 and is 0\.5\. Go',
        ),
    ):
        with pytest.raises(ValueError, match=problem):
            make_trainer(tmp_path, config=part, settings={'llm': own}).fit()
    assert make_trainer(tmp_path, config=plain, settings={'llm': llm}).fit()


def test_what_a_run_reads_may_lie_elsewhere(tmp_path: Path) -> None:
    def settings(folder: str, **hashes: str) -> dict[str, Any]:
        return {'llm': {'name': 'tiny', 'tables': {'graph': folder}}, **hashes}

    there, here = str(tmp_path / 'there'), str(tmp_path / 'here')
    run_dir = tmp_path / 'run'
    stopped(run_dir, settings(there, tables='a'))
    for own, problem in (
        (settings(here, tables='b'), "run: tables was 'a' and is 'b'"),
        (settings(here), r'run: llm\.tables\.graph was .*; tables was'),
        (settings('random:4', tables='a'), r"graph was .* and is 'random:4'\. Go"),
    ):
        with pytest.raises(ValueError, match=problem):
            make_trainer(run_dir, settings=own).fit()
    assert make_trainer(run_dir, settings=settings(here, tables='a')).fit()


def test_fresh_starts_over(tmp_path: Path) -> None:
    stopped(tmp_path)
    config = replace(CONFIG, epochs=1, lr=0.02)
    run = make_trainer(tmp_path, config=config)
    run.fit(fresh=True)
    assert run.model.losses == len(run.loader)
    run.fit()
    assert run.model.losses == len(run.loader)
    alone = make_trainer(tmp_path / 'alone', config=config)
    alone.fit()
    assert_same(run, alone)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    path = tmp_path / 'state' / 'weights.safetensors'
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r'weights\.safetensors.* damaged.* remove'):
        make_trainer(tmp_path).fit()


@pytest.mark.parametrize(
    'name',
    ['weights.safetensors', 'optimizer.safetensors', 'random.json', 'progress.json'],
)
def test_a_state_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    stopped(tmp_path)
    (tmp_path / 'state' / name).unlink()
    match = rf"there is no file '.*{name}'; .*remove '.*state' to start over"
    with pytest.raises(ValueError, match=match):
        make_trainer(tmp_path).fit()
    shutil.rmtree(tmp_path / 'state')
    run = make_trainer(tmp_path)
    run.fit()
    assert run.model.losses == CONFIG.epochs * len(run.loader)


@pytest.mark.parametrize(
    'content',
    ['[]', '{}', '{"progress": [], "settings": {}}', '{"progress": {"a": 1}}'],
)
def test_progress_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    stopped(tmp_path)
    (tmp_path / 'state' / 'progress.json').write_text(content)
    with pytest.raises(ValueError, match=r'progress\.json.* damaged'):
        make_trainer(tmp_path).fit()


def test_only_what_changes_is_saved(tmp_path: Path) -> None:
    stopped(tmp_path)
    saved = load_tensors(tmp_path / 'state' / 'weights.safetensors')
    assert set(saved) == {'user', 'item', 'bias', 'mean', 'start'}
    names = sorted(path.name for path in (tmp_path / 'state').iterdir())
    assert names == [
        'optimizer.safetensors',
        'progress.json',
        'random.json',
        'weights.safetensors',
    ]


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)

    class Other(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.extra = torch.nn.Parameter(self.bias.detach().clone())
            del self.bias

    other = make_trainer(tmp_path, Other())
    other.settings['class'] = 'Toy'
    with pytest.raises(ValueError, match=r"lacks 'extra'; it has also 'bias'"):
        other.fit()
