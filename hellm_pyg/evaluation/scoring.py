"""One batch of scores: run the model, leave items out, take the best."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.data.split import Histories
from hellm_pyg.evaluation.metrics import top_k
from hellm_pyg.evaluation.protocol import Recommender

Precision = Literal['fp32', 'bf16']


@contextmanager
def inference(model: Recommender, precision: Precision = 'fp32') -> Iterator[None]:
    """Evaluation mode without gradients; restores every sub-module's own flag."""
    if precision not in ('fp32', 'bf16'):
        raise ValueError(
            f"'precision' needs to be 'fp32' or 'bf16' (got {precision!r})"
        )
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    flags = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with (
            torch.no_grad(),
            torch.autocast(
                device_of(model).type, torch.bfloat16, enabled=precision == 'bf16'
            ),
        ):
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def device_of(model: Recommender) -> torch.device:
    """Where the model's first parameter or buffer lies."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device('cpu')


def history_length(models: Sequence[Recommender], max_len: int | None) -> int:
    """Number of last items of a history that is asked for, or that the models read.

    Without a number it is the largest ``max_len`` that one of them has, 50 if none has.
    """
    if max_len is not None:
        return max_len
    own = [int(m.max_len) for m in models if hasattr(m, 'max_len')]
    return max(own, default=50)


def place(data: HeteroData, device: torch.device) -> HeteroData:
    """The data on a device; a copy unless they are there."""
    values = [value for store in data.stores for value in store.values()]
    there = {value.device for value in values if isinstance(value, Tensor)} <= {device}
    return data if there else copy.copy(data).to(device)


def known_pairs(known: Histories | None, user: Tensor) -> tuple[Tensor, Tensor]:
    """Row and item of all that is known of some users; nothing of user -1."""
    if known is None:
        return user.new_empty(0), user.new_empty(0)
    length = known.length[user].where(user >= 0, 0)
    row = torch.arange(user.numel()).repeat_interleave(length)
    shift = known.ptr[user] - (length.cumsum(0) - length)
    return row, known.item[torch.arange(row.numel()) + shift[row]]


def score_all(
    model: Recommender, encoded: Any, batch: SequenceBatch, num_items: int
) -> Tensor:
    """Scores of all items, fp32 of shape [B, I].

    Raises:
        ValueError: If the model gives another shape.
    """
    scores = model.score(encoded, batch)
    if scores.shape != (batch.batch_size, num_items):
        raise ValueError(
            f"'score' needs to return one score an item for each row, of shape "
            f'{[batch.batch_size, num_items]} (got {list(scores.shape)}): the model is '
            f'of another catalogue'
        )
    return scores.float()


def best(
    scores: Tensor,
    row: Tensor,
    col: Tensor,
    k: int,
    user: Tensor,
    allow_fewer: bool = False,
    argument: str = 'k',
) -> tuple[Tensor, Tensor]:
    """Top items outside the masked pairs; ``scores`` is left untouched.

    Args:
        scores: Scores, float of shape :math:`[B, I]`, infinite where an item is left
            out for all.
        row: Rows of the pairs that are left out.
        col: Their items.
        k: Number of items.
        user: The user of each row, for messages.
        allow_fewer: Whether a row with fewer items left ends in items -1.
        argument: What the caller calls ``k``, for messages.

    Returns:
        Items and their scores, each of shape :math:`[B, k]`.

    Raises:
        ValueError: If a row has fewer items left and may not.
    """
    minus_infinity = scores.new_tensor(float('-inf'))
    scores = scores.index_put((row, col), minus_infinity)
    left = scores.isfinite().sum(dim=1, dtype=torch.int32)
    if not allow_fewer and bool((left < k).any()):
        worst = int(left.argmin())
        raise ValueError(
            f"'{argument}' needs to be at most the number of items that are left (got "
            f'{k}, but user {int(user[worst])} has {int(left[worst])} items left): '
            f'lower it, or rank seen or more items, too'
        )
    item, score = top_k(scores, k)
    return item.where(score.isfinite(), -1), score


def bar(batches: Any, description: str, progress: bool) -> Iterator[SequenceBatch]:
    """Shows how far the batches are, if asked, on a terminal."""
    # None hides the bar where there is no terminal.
    yield from tqdm(
        batches, description, disable=None if progress else True, leave=False
    )
