"""Trains any model that has a loss, chooses on validation, and can be resumed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import Module
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import load_json, save_json
from hellm_pyg.config import EvalConfig, TrainConfig
from hellm_pyg.data.loader import Loader, PairLoader, SequenceLoader
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import Protocol, evaluate
from hellm_pyg.evaluation.metrics import NaNScoresError, cutoff_of
from hellm_pyg.evaluation.scoring import place
from hellm_pyg.training.folder import TrainingFolder
from hellm_pyg.training.interrupt import Interrupts
from hellm_pyg.training.log import RunLog, epoch_line
from hellm_pyg.training.outputs import export, summary
from hellm_pyg.training.processes import make_accelerator
from hellm_pyg.training.schedule import learning_rate
from hellm_pyg.training.state import Progress
from hellm_pyg.training.step import Gradient, Stepper, Trainable
from hellm_pyg.training.teacher import Teacher, check_student, hashes

LINES_PER_EPOCH = 10
# What a loader decides, whatever a configuration says.
OF_LOADER = ('batch_size', 'batch_tokens', 'sampling', 'targets', 'num_neg', 'seed')
LEAST_HISTORY = 3  # an item and the two that are held out


class NonFiniteLossError(ValueError, FloatingPointError):
    """The loss, its gradient, the weights or the scores are NaN or infinite."""


class Trainer:
    r"""Fits a model and leaves a run folder behind.

    The gradient of a step is that of the mean over all targets of its window, the
    ``accumulate`` batches of all processes: it equals that of one large batch. It is
    clipped as a whole. The test items are never read.

    The folder holds ``log.jsonl``, ``tensorboard/`` (if installed), ``state/`` (to
    resume), ``best/`` (weights of the best epoch), ``metrics.json``, and the trained
    model: ``model/`` as its ``save_pretrained`` writes it, or else
    ``model.safetensors`` and ``embeddings.safetensors``, with ``ids.json``.

    A run resumes from its last state. On one device with the same number of threads
    it ends with the very weights of an undisturbed run.

    Args:
        model: A module with ``encode``, ``score``, ``loss`` and ``on_epoch_start``.
        data: Split interactions; what is trained on beyond the training part
            (``config.split``) has been folded in.
        loader: Training batches; reads the same data.
        config: Optimisation.
        run_dir: Folder of the run.
        evaluation: Protocol of the validation.
        ids: Original ids, saved with the model.
        settings: Further settings that a resumed run must share, such as the model's
            arguments; kept in ``metrics.json``.
        progress: Show a bar on a terminal.
        accelerator: The processes and devices; by default as ``accelerate launch``
            says.
        last_epoch: Ends a schedule of ``config.epochs`` after so many of them; kept
            among the settings.
        teachers: Name to recommender whose predictions are learned, too; for
            ``config.distill``, whose weight counts.

    Raises:
        ValueError: If the model lacks a method or has nothing to train, the loader is
            none of training items or not of the model's kind, the model has another
            number of items than the data, the three know histories of different
            length, or an argument is out of range.
    """

    def __init__(
        self,
        model: Trainable,
        data: HeteroData,
        loader: Loader,
        config: TrainConfig,
        run_dir: str | Path,
        evaluation: EvalConfig | None = None,
        ids: IdMap | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: bool = True,
        accelerator: Accelerator | None = None,
        last_epoch: int | None = None,
        teachers: Mapping[str, Module] | None = None,
    ) -> None:
        self.model: Any = model
        self.data = data
        self.loader = loader
        self.config = config
        self.run_dir = Path(run_dir)
        self.evaluation = EvalConfig() if evaluation is None else evaluation
        self.ids = ids
        self.progress = progress
        if config.epochs < 1:
            raise ValueError(f"'epochs' needs to be at least 1 (got {config.epochs})")
        if last_epoch is not None and last_epoch < 1:
            raise ValueError(
                f"'last_epoch' needs to be at least 1, or None (got {last_epoch})"
            )
        if config.split == 'train' and config.max_len < LEAST_HISTORY:
            raise ValueError(
                f"'max_len' needs to be at least {LEAST_HISTORY}, for in a validation "
                f'both held-out items count (got {config.max_len})'
            )
        _check(model, data, loader, config.max_len)
        self._cutoff = cutoff_of(config.metric)
        self._last_epoch = min(config.epochs, last_epoch or config.epochs)
        self.accelerator = make_accelerator() if accelerator is None else accelerator
        self.device = self.accelerator.device
        self._on_device = place(data, self.device)
        teacher = self._make_teacher(teachers or {})
        self._stepper = Stepper(
            self.model, self._on_device, config, self.accelerator, teacher
        )
        own: dict[str, Any] = {} if last_epoch is None else {'last_epoch': last_epoch}
        if teacher is not None:
            own['teachers'] = hashes(teacher.models)
        self.settings = self._make_settings({**(settings or {}), **own})
        self.state = Progress()
        self._folder = TrainingFolder(
            self.run_dir,
            cast(Module, model),
            self._stepper.optimizer,
            self.settings,
            self.accelerator,
        )
        self._interrupts = Interrupts()

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def _processes(self) -> int:
        return self.accelerator.num_processes

    def _make_teacher(self, models: Mapping[str, Module]) -> Teacher | None:
        distill = self.config.distill
        if distill is None:
            if models:
                raise ValueError(
                    f"'teachers' needs 'distill', which says how much they count (got "
                    f'{list(models)} with {distill})'
                )
            return None
        check_student(self.model)
        return Teacher(models, self._on_device, distill.weight, self.device)

    def _make_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        train = {**asdict(self.config), 'precision': self._stepper.precision}
        del train['save_minutes']  # may differ between the parts of a run
        loader = {key: getattr(self.loader, key, train[key]) for key in OF_LOADER}
        if own := {key: loader[key] for key in loader if loader[key] != train[key]}:
            settings = {**settings, 'loader': own}
        return {
            **settings,
            'train': train,
            'eval': asdict(self.evaluation),
            'data': getattr(self.data, 'fingerprint', None),
            'class': type(self.model).__name__,
            'trained_parameters': sum(p.numel() for p in self._stepper.trained),
            'processes': self._processes,
        }

    def fit(self, fresh: bool = False) -> dict[str, float]:
        """Trains, or goes on where a former run in this folder was stopped.

        Ctrl-C (or SIGTERM) saves the state after the current step; pressed again it
        stops at once. The model ends with the best weights, in evaluation mode.

        Args:
            fresh: Discard what the folder holds of a former run.

        Returns:
            The metrics on validation of the best epoch; none where the validation
            items were trained on.

        Raises:
            ValueError: If the folder holds the state of a run with other settings, or
                a finished run without its state.
            NonFiniteLossError: If the loss, its gradient, the weights that a step
                leaves or the scores on validation are NaN or infinite. The last state
                and the best weights stay.
            KeyboardInterrupt: After Ctrl-C.
        """
        self.state = self._folder.start(fresh)
        self._saved = time.monotonic()
        if not self.state.stopped:
            self._log = RunLog(
                self.run_dir,
                self.state.position,
                self.state.total_steps,
                self._last_epoch * self._steps(self.state.epoch),
                self.progress,
                self._main,
            )
            try:
                with self._interrupts.held():
                    self.model.train()
                    while not self.state.stopped:
                        self._epoch()
            finally:
                self._log.close()
        return self._finish()

    def _steps(self, epoch: int) -> int:
        self.loader.set_epoch(epoch)
        if len(self.loader) == 0:
            raise ValueError(
                "'loader' needs at least one batch an epoch (got none): histories need "
                'two training items or more'
            )
        return math.ceil(len(self.loader) / (self.config.accumulate * self._processes))

    def _begin(self) -> None:
        """Random numbers and hooks: a function of seed and epoch."""
        epoch, rank = self.state.epoch, self.accelerator.process_index
        set_seed(_seed(self.config.seed, epoch, 0))
        self.model.on_epoch_start(self._on_device)
        set_seed(_seed(self.config.seed, epoch, 1 + rank))
        self._folder.resume_epoch(self.state.step)

    def _epoch(self) -> None:
        state, accumulate = self.state, self.config.accumulate
        steps = self._steps(state.epoch)
        began = time.perf_counter()
        self._begin()
        state.seconds += time.perf_counter() - began
        share = self.loader.shard(self.accelerator.process_index, self._processes)
        batches = share.batches(state.step * accumulate)
        mark = (state.loss, state.targets, time.perf_counter())
        while state.step < steps:
            began = time.perf_counter()
            window = list(islice(batches, accumulate))
            found = self._stepper.backward(window)
            self._check(found)
            self._stepper.update(self._rate(steps), found.norm)
            state.step += 1
            state.total_steps += 1
            state.loss += found.loss * found.targets
            state.targets += found.targets
            state.seconds += time.perf_counter() - began
            if state.step % math.ceil(steps / LINES_PER_EPOCH) == 0:
                mark = self._report(mark, steps, found)
            self._show(steps)
            self._pause()
        self._check_weights()
        if self._is_measured():
            self._save()  # what measures may need more memory than there is
        self._validate(steps)
        self._save()
        self._folder.prune(state.best_epoch)
        if self._stepper.sum(float(self._interrupts.pending))[0] > 0:
            self._stop(save=False)

    def _rate(self, steps: int) -> float:
        return learning_rate(self.config, self.state.epoch + self.state.step / steps)

    def _pause(self) -> None:
        """Saves after a step if it is time, and stops if somebody asked."""
        overdue = time.monotonic() - self._saved >= 60 * self.config.save_minutes
        pending, due = self._stepper.sum(
            float(self._interrupts.pending), float(self._main and overdue)
        )
        if pending > 0:
            self._stop()
        if due > 0:
            self._save()

    def _check(self, found: Gradient) -> None:
        for what, value in (('loss', found.loss), ('gradient', found.norm.item())):
            if not math.isfinite(value):
                raise self._diverged(f'the {what} is {value}', self.state.step + 1)

    def _check_weights(self) -> None:
        """A finite gradient may still move weights to where they overflow."""
        if not all(bool(p.isfinite().all()) for p in self._stepper.trained):
            raise self._diverged('the weights are NaN or infinite', self.state.step)

    def _diverged(self, what: str, step: int) -> NonFiniteLossError:
        kept, where = 'no state had been saved yet', ''
        if self._folder.state.is_dir():
            kept = f"the last state with finite weights stays in '{self._folder.state}'"
            where = (
                " in another folder ('run_dir', or '--out' on the command line): this "
                'one goes on with its own settings only'
            )
        return NonFiniteLossError(
            f'{what} in epoch {self.state.epoch + 1}, step {step}; {kept}. Lower '
            f"'lr' (got {self.config.lr}), set 'clip' (got {self.config.clip}) or "
            f'train in fp32 (got {self.config.precision}){where}'
        )

    def _report(
        self, mark: tuple[float, float, float], steps: int, found: Gradient
    ) -> tuple[float, float, float]:
        """Writes a line about the steps since the last one."""
        state = self.state
        now = (state.loss, state.targets, time.perf_counter())
        loss, targets, seconds = (b - a for a, b in zip(mark, now, strict=True))
        record = {
            'epoch': state.epoch + 1,
            'step': state.step,
            'loss': loss / targets,
            'lr': self._stepper.optimizer.param_groups[0]['lr'],
            'grad_norm': found.norm.item(),
            'targets_per_second': targets / seconds,
        }
        self._log.write(record, state.total_steps)
        return now

    def _show(self, steps: int) -> None:
        state, epochs = self.state, self._last_epoch
        values = {'loss': f'{state.loss / state.targets:.4f}'}
        if state.best is not None:
            values[self.config.metric] = f'{state.best:.4f}'
        total = state.total_steps + (epochs - state.epoch) * steps - state.step
        self._log.advance(f'epoch {state.epoch + 1}/{epochs}', total, values)

    def _is_measured(self) -> bool:
        """Whether the epoch at hand ends with a validation."""
        epoch, config = self.state.epoch + 1, self.config
        due = epoch % config.eval_every == 0 or epoch >= self._last_epoch
        return due and config.split == 'train'

    def _validate(self, steps: int) -> None:
        """Ends an epoch: measures, keeps the best weights, decides whether to stop."""
        state, config, metrics = self.state, self.config, None
        epoch, began = state.epoch + 1, time.perf_counter()
        if config.split != 'train':  # nothing is left to choose by: the last is kept
            state.best_epoch = epoch
            self._folder.keep_best(epoch)
        elif self._is_measured():
            metrics = self._measure()
            value = metrics[config.metric]
            state.waited += 1
            if state.best is None or value > state.best:
                state.best, state.best_epoch = value, epoch
                state.best_metrics, state.waited = metrics, 0
                self._folder.keep_best(epoch)
        record = {
            'epoch': epoch,
            'loss': state.loss / state.targets,
            'lr': learning_rate(config, epoch - 1 / steps),
            'seconds': round(state.seconds, 3),
            'eval_seconds': round(time.perf_counter() - began, 3),
            'metrics': metrics,
            'best_epoch': state.best_epoch,
        }
        state.curve.append(record)
        self._log.write(record, state.total_steps)
        self._log.say(epoch_line(record, self._last_epoch, config.metric))
        if epoch >= self._last_epoch:
            state.stopped = f"all {epoch} 'epochs' done"
        elif state.waited >= max(config.patience, 1):
            state.stopped = f"no improvement in {state.waited} validations ('patience')"
        state.epoch, state.step = epoch, 0
        state.loss = state.targets = state.seconds = 0.0

    def _measure(self) -> dict[str, float]:
        options = self.evaluation
        try:
            # Nothing changes meanwhile. Several processes have to stop together.
            with self._interrupts.at_once(allowed=self._processes == 1):
                found = evaluate(
                    self.model,
                    self._on_device,
                    'val',
                    sorted({*options.ks, self._cutoff}),
                    Protocol(options.history, options.mask),
                    options.batch_size,
                    max_len=self.config.max_len,
                    shard=(self.accelerator.process_index, self._processes),
                    progress=self.progress and self._main,
                )
        except KeyboardInterrupt:
            self._stop(save=False)
        except NaNScoresError as error:
            what = 'scores on validation are NaN'
            raise self._diverged(what, self.state.step) from error
        return found.metrics

    def _save(self) -> None:
        self._check_weights()
        self.state.position = self._log.position
        self._folder.save(self.state)
        self._saved = time.monotonic()

    def _stop(self, save: bool = True) -> NoReturn:
        if save:
            self._save()
        self._log.close()
        if self._main:
            print(
                f'Interrupted in epoch {self.state.epoch + 1}, after '
                f"{self.state.step} steps. The state is in '{self._folder.state}': "
                f'the same command goes on from there.',
                file=sys.stderr,
            )
        raise KeyboardInterrupt

    def _finish(self) -> dict[str, float]:
        """Puts the best weights in place and writes what the run leaves behind."""
        self._folder.load_best(self.state.best_epoch)
        self.model.eval()
        path = self._folder.metrics
        if self._main and not path.is_file():
            found = summary(
                self.state,
                self.config,
                self.evaluation,
                self.settings,
                self.model,
                self.data,
                self.device,
            )
            export(self.model, self._on_device, self.run_dir, found, self.ids)
            save_json(path, found)
        self.accelerator.wait_for_everyone()
        return dict(load_json(path, {'metrics': dict})['metrics'])


def _check(model: Any, data: HeteroData, loader: Any, max_len: int) -> None:
    split = getattr(loader, 'split', 'train')
    if split != 'train':
        raise ValueError(
            f"'loader' needs to give training items (got those of {split!r}): choose "
            f"split='train'"
        )
    kind = {'pairs': PairLoader, 'sequences': SequenceLoader}.get(
        getattr(model, 'sampling', ''), object
    )
    if isinstance(loader, PairLoader | SequenceLoader) and not isinstance(loader, kind):
        raise ValueError(
            f"'loader' needs to be a {kind.__name__}, which {type(model).__name__} "
            f'learns from (got a {type(loader).__name__})'
        )
    num_items = int(data['item'].num_nodes)
    if getattr(model, 'num_items', num_items) != num_items:
        raise ValueError(
            f"'model' needs to have the items of the data, {num_items} (got "
            f'{model.num_items})'
        )
    for what, reader in (('loader', loader), ('model', model)):
        length = getattr(reader, 'max_len', max_len)
        if length != max_len:
            raise ValueError(
                f"'max_len' needs to be that of the {what}, {length}, for validation "
                f'to read histories as training does (got {max_len})'
            )


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
