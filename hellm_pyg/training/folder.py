"""What a training keeps in its folder: where to go on from, and the best weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator

from hellm_pyg.checkpoint import load_tensors, save_tensors
from hellm_pyg.training.processes import main_first
from hellm_pyg.training.state import (
    PROGRESS,
    WEIGHTS,
    Progress,
    load_state,
    load_trained,
    random_state,
    read_progress,
    save_state,
    set_random_state,
    trained_tensors,
)

STATE, BEST, METRICS = 'state', 'best', 'metrics.json'


class TrainingFolder:
    """Saves a training and puts it back; the first process writes, all of them read.

    Args:
        path: Folder of the run.
        model: What is trained.
        optimizer: What trains it.
        settings: What a resumed run must share with the former one.
        accelerator: The processes.
    """

    def __init__(
        self,
        path: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.path = path
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.accelerator = accelerator
        self._generators: list[dict[str, Any]] = []

    @property
    def state(self) -> Path:
        """Where the state lies."""
        return self.path / STATE

    @property
    def metrics(self) -> Path:
        """The summary that a finished run leaves."""
        return self.path / METRICS

    def start(self, fresh: bool) -> Progress:
        """Reads the state of a former run, or makes the folder ready for a new one.

        Args:
            fresh: Discard what the folder holds of a former run.

        Raises:
            ValueError: If the state is of other settings or damaged, or a finished run
                has none.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with main_first(self.accelerator):  # puts a half-swapped folder back
            found = None if fresh else read_progress(self.state, self.settings)
        self.accelerator.wait_for_everyone()
        if found is not None:
            self._generators = load_state(self.state, self.model, self.optimizer)
        elif not fresh and self.metrics.is_file():
            raise ValueError(
                f"'run_dir' needs a folder to train in (got '{self.path}', which "
                f"holds a finished run without its '{STATE}'): take what it has "
                f"trained, choose another folder, or call 'fit(fresh=True)'"
            )
        elif self.accelerator.is_main_process:
            self._clear()
        self.accelerator.wait_for_everyone()
        return Progress() if found is None else found

    def _clear(self) -> None:
        for pattern in (METRICS, f'{BEST}/epoch-*', 'tensorboard/events.out.*'):
            for path in self.path.glob(pattern):
                path.unlink()
        for former in (self.state, self.path / f'.{STATE}.old'):
            if (former / PROGRESS).is_file():
                shutil.rmtree(former)

    def resume_epoch(self, step: int) -> None:
        """Puts a run that was stopped within an epoch back to where it was.

        To be called after the hooks at the start of the epoch, which repeat what they
        did to the weights, the buffers and the random numbers.

        Args:
            step: Steps done in the epoch; nothing happens at 0, nor in an epoch that
                has been trained from its start.
        """
        if step > 0 and self._generators:
            path = self.state / WEIGHTS
            load_trained(self.model, load_tensors(path), f"'{path}'")
            own = self._generators[self.accelerator.process_index]
            set_random_state(own, self.accelerator.device)
        self._generators = []

    def save(self, progress: Progress) -> None:
        """Writes the state; an interrupted write leaves the former one."""
        own = random_state(self.accelerator.device)
        generators: list[Any] = [own]
        if self.accelerator.num_processes > 1:
            generators = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(generators, own)
        if self.accelerator.is_main_process:
            save_state(
                self.state,
                self.model,
                self.optimizer,
                progress,
                self.settings,
                generators,
            )

    def keep_best(self, epoch: int) -> None:
        """Writes the weights as those of the best epoch, beside the former ones."""
        if self.accelerator.is_main_process:
            save_tensors(self._best(epoch), trained_tensors(self.model))

    def prune(self, epoch: int) -> None:
        """Drops former best weights; to be called once the saved state knows the new.

        Args:
            epoch: The best one, whose weights stay.
        """
        if self.accelerator.is_main_process:
            for path in (self.path / BEST).glob('epoch-*.safetensors'):
                if path != self._best(epoch):
                    path.unlink()

    def load_best(self, epoch: int) -> None:
        """Gives the model the weights of the best epoch."""
        path = self._best(epoch)
        load_trained(self.model, load_tensors(path), f"'{path}'")

    def _best(self, epoch: int) -> Path:
        return self.path / BEST / f'epoch-{epoch:05d}.safetensors'
