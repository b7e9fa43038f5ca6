"""The two phases: a configuration is trained into a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_geometric.data import HeteroData

from hellm_pyg import checkpoint
from hellm_pyg.assembly import build_llm, build_loader, build_model, resolve_paths
from hellm_pyg.config import (
    Config,
    TrainConfig,
    load_run_config,
    save_config,
    to_dict,
)
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.experiment.evaluation import forget_results, protocol_of, rank_users
from hellm_pyg.experiment.preparation import check_phase, prepare
from hellm_pyg.keys import in_words_of
from hellm_pyg.refit import chosen_epochs, former_run, validation
from hellm_pyg.run_folder import (
    CONFIG,
    IDS,
    METRICS,
    WEIGHTS,
    check_members,
    check_read,
    check_unchanged,
    claim,
    is_without_state,
    load_members,
    read_metrics,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def pretrain(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Trains a model of phase 1 and exports its vectors for phase 2.

    The folder gets ``config.yaml`` and what the
    :class:`~hellm_pyg.training.Trainer` leaves. The same call goes on where a
    stopped one was.

    Args:
        config: The experiment, with a section ``model``.
        run_dir: Folder of the run.

    Returns:
        The best metrics on validation; none where its items are trained on.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds a run
            of another one, or another process trains in it.
    """
    check_phase('pretrain', 'model', config)
    run_dir, config = Path(run_dir), resolve_paths(config)
    accelerator, data, ids = prepare(config)
    model: Any = build_model(config, data)
    with claim(run_dir, config, accelerator.is_main_process):
        return _train(config, run_dir, model, data, ids, accelerator)


def finetune(config: Config, run_dir: str | Path) -> dict[str, float]:
    """Trains a language-model recommender on the tables of phase 1.

    The folder gets ``config.yaml`` and what the
    :class:`~hellm_pyg.training.Trainer` leaves, the model as
    ``save_pretrained`` writes it. The same call goes on where a stopped one was.

    Args:
        config: The experiment, with a section ``llm``.
        run_dir: Folder of the run.

    Returns:
        The best metrics on validation; none where its items are trained on.

    Raises:
        ValueError: If the configuration cannot be run, a table is of other data,
            the folder holds a run of another configuration, or another process
            trains in it.
    """
    check_phase('finetune', 'llm', config)
    run_dir, config = Path(run_dir), resolve_paths(config)
    accelerator, data, ids = prepare(config)
    model = build_llm(config, data, ids)
    with claim(run_dir, config, accelerator.is_main_process):
        return _train(config, run_dir, model, data, ids, accelerator)


def _train(
    config: Config,
    run_dir: Path,
    model: Any,
    data: HeteroData,
    ids: IdMap,
    accelerator: Accelerator,
) -> dict[str, float]:
    from hellm_pyg.training import Trainer
    from hellm_pyg.training.teacher import hashes

    former = former_run(config, data, ids) if config.train.refit else None
    loader = build_loader(config, data, model)
    ended = (run_dir / METRICS).is_file()
    accelerator.wait_for_everyone()  # until all know it
    if accelerator.is_main_process and not ended:
        forget_results(run_dir)
    if loader is None and ended:
        check_unchanged(run_dir, data)
        return _finished(run_dir)
    if loader is None:
        return _count(config, run_dir, model, data, ids, accelerator, former)
    settings = {'model': config.model, 'llm': to_dict(config)['llm']}
    if config.llm is not None:  # what is frozen the state does not hold
        from hellm_pyg.llm.signature import backbone_signature

        settings['tables'] = checkpoint.tensor_hash(model.tables.state_dict())
        settings['backbone'] = backbone_signature(model.llm, model.prompt)
    if former:
        settings['refit'] = validation(former)
    if is_without_state(run_dir):
        if load_run_config(run_dir / CONFIG).train.distill != config.train.distill:
            settings['teachers'] = hashes(_load_teachers(config, data, ids))
        check_unchanged(run_dir, data)
        check_read(run_dir, settings)
        return _finished(run_dir)
    teachers = _load_teachers(config, data, ids)
    with in_words_of(TrainConfig, 'train', teachers='train.distill.runs'):
        trainer = Trainer(
            model,
            data,
            loader,
            config.train,
            run_dir,
            config.eval,
            ids,
            settings,
            accelerator=accelerator,
            last_epoch=chosen_epochs(former) if former else None,
            teachers=teachers,
        )
    metrics = trainer.fit()
    if accelerator.is_main_process and not ended:
        save_config(config, run_dir / CONFIG)  # its files may have moved meanwhile
    return metrics


def _finished(run_dir: Path) -> dict[str, float]:
    logger.info('%s: finished before, nothing is done', run_dir)
    return dict(read_metrics(run_dir)['metrics'])


def _count(
    config: Config,
    run_dir: Path,
    model: Any,
    data: HeteroData,
    ids: IdMap,
    accelerator: Accelerator,
    former: Path | None,
) -> dict[str, float]:
    """Fits a model that has nothing to train."""
    if config.train.distill is not None:
        raise ValueError(
            f"'train.distill' needs a model that is trained (got "
            f'{type(model).__name__}, which counts): set it to null'
        )
    model.fit(data)
    found: dict[str, Any] = {'metrics': {}}
    if config.train.split == 'train':
        protocols = [protocol_of(config)]
        (ranked,) = rank_users(config, model, data, 'val', protocols, accelerator)
        found = ranked.to_dict()
    if former:
        found['refit'] = validation(former)
    found['split_fingerprint'] = data.split_fingerprint
    if accelerator.is_main_process:
        checkpoint.save_tensors(run_dir / WEIGHTS, model.state_dict())
        ids.save(run_dir / IDS)
        checkpoint.save_json(run_dir / METRICS, found)  # which ends the run
    accelerator.wait_for_everyone()
    return found['metrics']


def _load_teachers(config: Config, data: HeteroData, ids: IdMap) -> dict[str, Any]:
    """The runs of ``train.distill``."""
    if config.train.distill is None:
        return {}
    folders, key = config.train.distill.runs, 'train.distill.runs'
    teachers = load_members(folders, config, data, ids, key)
    check_members(folders, data, key)
    return teachers
