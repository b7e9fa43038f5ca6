"""RecTools' SASRec, with the settings of the eSASRec benchmark.

Runs in an environment of its own; ``python -m benchmarks.peers rectools_sasrec`` starts
it. The defaults are the settings that `"eSASRec" <https://arxiv.org/abs/2508.06450>`_
names for Amazon Beauty, Sports and Toys; the run files of its authors' repository
(``blondered/transformer_benchmark``, ``configs/paper/loo/s3_vanilla.yaml``) have width
256 where its README says 64: ``--factors 256``. They select by Recall@10
(``--metric R@10``); here N@10 selects everywhere.

It is trained on the training items. Validation items choose the epoch and are, with the
training items, what is read for ``history=train+val``. Items that nobody trained on
have no vector: the library neither reads nor lists them. With ``--refit`` a second
model is trained on the validation items, too, for as many epochs as they chose for the
first, and the lists are its. After a kill the same command goes on from the last epoch
of the first.

What the library does, where it differs from a textbook's pre-norm transformer (read off
the sources of 0.19.0):

* Rows are padded on the left to ``session_max_len``. Positions are learnt and inverse:
  the last item has position 0. Item vectors are not scaled by the root of the width.
* At the start of the training every matrix, also the tables, is drawn from Xavier's
  normal distribution: standard deviation sqrt(2 / (rows + columns)), .013 for the items
  of Beauty at width 64, .13 for the positions, .09 for the attention's input
  projection, .125 for square matrices. Biases keep torch's start: 0 in the attention,
  uniform within 1 / sqrt(width) in the feed-forward layers.
* Block: q = LN(x); x = q + Attention(q, x, x), keys and values being the *unnormalised*
  x; f = LN(x); x = f + Dropout(W2 Dropout(ReLU(W1 f))), as wide inside as outside. Both
  residuals start from the normalised vector. Attention weights are dropped out, its
  output is not. A last LN (eps 1e-8) follows. The input, items with positions, is
  dropped out.
* Padding is not masked in attention (``use_key_padding_mask=False``): its vectors are
  set to 0 before each block, so that it competes in the softmax with value 0 (later the
  bias), once for each of the ``session_max_len - n`` padded places.
* Scores are inner products of the last LN's output with the item table, the same one as
  at the input; no bias, no temperature.
* Sampled softmax at every position: cross-entropy of the target against ``n_negatives``
  items drawn uniformly from the whole catalogue, for each position anew, with
  repetition; neither the user's own items nor the target are left out, and no
  probability is corrected for. The mean is taken over the targets of a batch.
* One row a user, its last ``session_max_len + 1`` items; 128 rows a batch, shuffled;
  Adam, learning rate 1e-3, betas (.9, .98), no weight decay, no schedule, no clipping.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import exchange
import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--patience', type=int, default=50, help='epochs')
    parser.add_argument('--refit', action='store_true')
    parser.add_argument('--metric', choices=('N@10', 'R@10'), default='N@10')
    parser.add_argument('--factors', type=int, default=64)
    parser.add_argument('--blocks', type=int, default=1)
    parser.add_argument('--heads', type=int, default=1)
    parser.add_argument('--dropout', type=float, default=0.2)
    parser.add_argument('--max-len', type=int, default=50)
    parser.add_argument('--loss', default='sampled_softmax')
    parser.add_argument('--negatives', type=int, default=256)
    parser.add_argument('--learning-rate', type=float, default=1e-3)
    parser.add_argument('--batch-size', type=int, default=128)
    return parser.parse_args()


def interactions(split: exchange.Split, history: str) -> pd.DataFrame:
    user, item = split.history(history)
    # Rows lie in order of time within a user: seconds do for a clock.
    time = pd.to_datetime(np.arange(len(user)), unit='s')
    columns = (Columns.User, Columns.Item, Columns.Weight, Columns.Datetime)
    return pd.DataFrame(dict(zip(columns, (user, item, 1.0, time), strict=True)))


def is_validation(frame: pd.DataFrame, val: np.ndarray) -> np.ndarray:
    """Marks the validation items, which are the last of their users."""
    last = ~frame.duplicated(Columns.User, keep='last').to_numpy()
    return last & (
        val[frame[Columns.User].to_numpy()] == frame[Columns.Item].to_numpy()
    )


class TargetSimilarity(DistanceSimilarityModule):
    """The library's scores, of the places that have a target alone.

    Its own module gathers items for padded places, too, which the loss leaves out: the
    scores there are 0 here. In validation, where a user has one target, one gathering
    of its items serves all places. Loss and gradients are the library's, up to
    rounding.
    """

    def _get_pos_neg_logits(
        self,
        session_embs: torch.Tensor,
        item_embs: torch.Tensor,
        candidate_item_ids: torch.Tensor,
    ) -> torch.Tensor:
        if candidate_item_ids.size(1) == 1:
            return session_embs @ item_embs[candidate_item_ids.squeeze(1)].mT
        place = candidate_item_ids[..., 0] != 0
        items = item_embs[candidate_item_ids[place]]
        score = session_embs.new_zeros(candidate_item_ids.shape)
        score[place] = (items @ session_embs[place].unsqueeze(-1)).squeeze(-1)
        return score


class KeepBest(Callback):
    """Ranks the validation items after each epoch; stops; restores the best weights."""

    def __init__(self, metric: str, patience: int, settings: dict[str, Any]) -> None:
        self.metric = metric
        self.patience = patience
        self.settings = settings
        self.random: torch.Tensor | None = None
        self.curve: list[dict[str, Any]] = []
        self.best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})
        self.began = self.seconds = 0.0
        self.ranks: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, the random numbers' state included."""
        kept = {'curve': self.curve, 'best': self.best, 'settings': self.settings}
        return {**kept, 'random': torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what a checkpoint has kept."""
        if state_dict['settings'] != self.settings:
            raise ValueError(
                f"'folder' needs a run of the same settings (got "
                f"{state_dict['settings']}, not {self.settings}): remove its 'state'"
            )
        self.curve, self.best = state_dict['curve'], state_dict['best']
        self.random = state_dict['random']

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Goes on with the weights and random numbers of a checkpoint."""
        if self.random is not None:
            module.is_fitted = True  # else it would draw its weights anew
            torch.set_rng_state(self.random)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock."""
        self.began = time.perf_counter()

    def on_validation_epoch_start(
        self, trainer: Trainer, module: LightningModule
    ) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self.began
        self.ranks = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: Any,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        *_: Any,
    ) -> None:
        """Ranks the targets of a batch."""
        table = module.item_embs
        score = module.torch_model.encode_sessions(batch, table)[:, -1] @ table.T
        target = batch['y'][:, -1:]
        own = score.gather(1, target)
        score.scatter_(1, batch['x'], -torch.inf)  # 0, the padding, among them
        self.ranks.append(1 + (score > own).sum(dim=1))

    def on_validation_epoch_end(
        self, trainer: Trainer, module: LightningModule
    ) -> None:
        """Keeps the weights if they are the best so far."""
        rank = torch.cat(self.ranks).double()
        hit = rank <= 10
        metrics = {'N@10': float((hit / (rank + 1).log2()).mean())}
        metrics['R@10'] = float(hit.double().mean())
        epoch = trainer.current_epoch + 1
        evaluation = time.perf_counter() - self.began - self.seconds
        row = {
            'epoch': epoch,
            'seconds': round(self.seconds, 3),
            'eval_seconds': round(evaluation, 3),
            'metrics': metrics,
        }
        self.curve.append(row)
        print(row, flush=True)
        if metrics[self.metric] > self.best[0]:
            state = copy.deepcopy(module.state_dict())
            self.best = metrics[self.metric], epoch, state
        trainer.should_stop = epoch - self.best[1] >= self.patience

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Takes the best weights."""
        module.load_state_dict(self.best[2])


def lists(model: SASRecModel, frame: pd.DataFrame, split: exchange.Split) -> np.ndarray:
    """The best items of all users after the history in a frame."""
    best = np.full((split.num_users, split.list_length), -1, np.int32)
    for users in np.array_split(
        np.arange(split.num_users), -(-split.num_users // 4096)
    ):
        part = frame[frame[Columns.User].isin(users)]
        found = model.recommend(
            part[Columns.User].unique(),
            Dataset.construct(part),
            k=split.list_length,
            filter_viewed=False,
            on_unsupported_targets='ignore',
        )
        place = found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1
        best[place] = found[Columns.Item].to_numpy()
    return best


class Resuming(Trainer):
    """Saves its state after each epoch, and begins with what is there."""

    def __init__(self, state: Path, callbacks: list[Callback], **kwargs: Any) -> None:
        saving = ModelCheckpoint(
            state,
            'last',
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        super().__init__(callbacks=[*callbacks, saving], **kwargs)
        self.state_file = state / 'last.ckpt'

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Trains, or trains on."""
        path = str(self.state_file) if self.state_file.is_file() else None
        super().fit(*args, ckpt_path=path, **kwargs)


def quiet(epochs: int) -> dict[str, Any]:
    """Arguments of a trainer that only trains."""
    return {
        'max_epochs': epochs,
        'deterministic': True,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'logger': False,
        'num_sanity_val_steps': 0,
        'devices': 1,
    }


def main() -> None:
    args = arguments()
    warnings.filterwarnings('ignore')
    seed_everything(args.seed, workers=True)
    split = exchange.read_split(args.folder)
    settings = {
        'n_factors': args.factors,
        'n_blocks': args.blocks,
        'n_heads': args.heads,
        'dropout_rate': args.dropout,
        'session_max_len': args.max_len,
        'loss': args.loss,
        'n_negatives': args.negatives,
        'lr': args.learning_rate,
        'batch_size': args.batch_size,
    }

    def mask(frame: pd.DataFrame) -> np.ndarray:
        return is_validation(frame, split.val)

    keep = KeepBest(args.metric, args.patience, {**settings, 'seed': args.seed})
    state = args.folder / 'state'
    known = Dataset.construct(interactions(split, 'train+val'))
    model = SASRecModel(
        **settings, similarity_module_type=TargetSimilarity, get_val_mask_func=mask
    )
    model._trainer = trainer = Resuming(state, [keep], **quiet(args.epochs))
    model.fit(known)
    fitted = next(c for c in model.fit_trainer.callbacks if isinstance(c, KeepBest))
    seconds = sum(row['seconds'] + row['eval_seconds'] for row in fitted.curve)
    if args.refit:
        seed_everything(args.seed, workers=True)
        model = SASRecModel(**settings, similarity_module_type=TargetSimilarity)
        options = quiet(fitted.best[1])
        model._trainer = Trainer(**options, enable_checkpointing=False)
        began = time.perf_counter()
        model.fit(known)
        seconds += time.perf_counter() - began
        settings['train'] = {'split': 'train+val'}
    network = model.lightning_model.torch_model
    exchange.write_answer(
        args.folder,
        {
            name: lists(model, interactions(split, name), split)
            for name in ('train', 'train+val')[args.refit :]
        },
        {
            'versions': exchange.versions(
                'rectools', 'torch', 'pytorch-lightning', 'numpy'
            ),
            'settings': {**settings, 'epochs': args.epochs, 'patience': args.patience},
            'trained_parameters': sum(p.numel() for p in network.parameters()),
            'validation': {
                'selection': args.metric,
                'best_epoch': fitted.best[1],
                'epochs': len(fitted.curve),
                'seconds_per_epoch': round(
                    float(np.mean([row['seconds'] for row in fitted.curve])), 3
                ),
                'seconds': round(seconds, 3),
                'peak_memory_bytes': exchange.peak_memory(),
                'device': str(trainer.strategy.root_device),
                'threads': torch.get_num_threads(),
                'curve': fitted.curve,
            },
        },
    )
    shutil.rmtree(state)


if __name__ == '__main__':
    main()
