from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hellm_pyg.training.folder import TrainingFolder
from hellm_pyg.training.processes import make_accelerator


def folder_of(path: Path, model: torch.nn.Module) -> TrainingFolder:
    optimizer = torch.optim.Adam(model.parameters())
    return TrainingFolder(path, model, optimizer, {'lr': 1.0}, make_accelerator())


def fill(model: torch.nn.Linear, value: float) -> None:
    torch.nn.init.constant_(model.weight, value)


def test_a_state_survives_while_the_weights_of_the_next_best_epoch_are_written(
    tmp_path: Path,
) -> None:
    model = torch.nn.Linear(2, 3)
    folder = folder_of(tmp_path, model)
    progress = folder.start(fresh=False)
    for epoch, value in ((1, 1.0), (2, 2.0)):
        fill(model, value)
        folder.keep_best(epoch)
    # Killed before the state knew of epoch 2: epoch 1 can still be loaded.
    progress.best_epoch = 1
    folder.load_best(progress.best_epoch)
    assert torch.equal(model.weight, torch.ones(3, 2))
    progress.best_epoch = 2
    folder.save(progress)
    folder.prune(progress.best_epoch)
    assert [path.name for path in (tmp_path / 'best').iterdir()] == [
        'epoch-00002.safetensors'
    ]
    other = torch.nn.Linear(2, 3)
    again = folder_of(tmp_path, other)
    assert again.start(fresh=False) == progress
    again.load_best(2)
    assert torch.equal(other.weight, 2 * torch.ones(3, 2))


def test_only_what_a_run_has_written_is_cleared(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    folder = folder_of(tmp_path, model)
    folder.save(folder.start(fresh=False))
    folder.keep_best(1)
    folder.metrics.write_text('{}')
    (tmp_path / 'best' / 'notes.txt').write_text('mine')
    (tmp_path / 'config.yaml').write_text('seed: 1')
    assert folder.start(fresh=True).total_steps == 0
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.*')}
    assert left == {'best/notes.txt', 'config.yaml'}
    assert not folder.state.exists()


def test_random_numbers_come_back_within_an_epoch_alone(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    folder = folder_of(tmp_path, model)
    progress = folder.start(fresh=False)
    progress.step = 5
    torch.manual_seed(3)
    fill(model, 7.0)
    folder.save(progress)
    drawn = torch.rand(4)
    for step, expected in ((0, False), (progress.step, True)):
        again = folder_of(tmp_path, model)
        again.start(fresh=False)
        fill(model, 0.0)  # as a hook at the start of the epoch might
        torch.manual_seed(4)
        again.resume_epoch(step)
        assert torch.equal(torch.rand(4), drawn) == expected
        assert bool((model.weight == 7).all()) == expected


@pytest.mark.parametrize('fresh', [False, True])
def test_a_finished_run_without_state_is_trained_again_on_demand_only(
    tmp_path: Path, fresh: bool
) -> None:
    folder = folder_of(tmp_path, torch.nn.Linear(2, 3))
    folder.metrics.write_text('{}')
    if fresh:
        assert folder.start(fresh).epoch == 0
        assert not folder.metrics.exists()
    else:
        with pytest.raises(ValueError, match="'run_dir' needs a folder to train in"):
            folder.start(fresh)
