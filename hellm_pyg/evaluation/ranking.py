"""Full ranking of held-out items."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.data.loader import SequenceLoader
from hellm_pyg.data.split import Histories, fold_in, history_edges
from hellm_pyg.evaluation.metrics import beyond_accuracy, summarize, target_rank
from hellm_pyg.evaluation.protocol import HEADLINE, Evaluation, Protocol, Recommender
from hellm_pyg.evaluation.scoring import (
    Precision,
    bar,
    best,
    device_of,
    history_length,
    inference,
    known_pairs,
    place,
    score_all,
)


def evaluate(
    model: Recommender,
    data: HeteroData,
    split: Literal['val', 'test'] = 'val',
    ks: Sequence[int] = (10, 20),
    protocol: Protocol = HEADLINE,
    batch_size: int = 1024,
    *,
    max_len: int | None = None,
    batch_tokens: int | None = None,
    users: Tensor | Sequence[int] | None = None,
    precision: Precision = 'fp32',
    beyond: bool = False,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Evaluation:
    r"""Ranks every user's held-out item among all items.

    The model encodes the data once and scores users of similar history length
    together; no more than a batch of scores exists at a time.

    Args:
        model: The model; its training flags are restored afterwards.
        data: Split interactions.
        split: ``'val'`` or ``'test'``.
        ks: Cut-offs.
        protocol: What is read and what is ranked.
        batch_size: Users scored at once.
        max_len: Number of last items of a history that the model may read;
            :obj:`None` for the model's own ``max_len``, or 50 if it has none. Masking
            knows all of them.
        batch_tokens: Bound on users times longest history instead of ``batch_size``.
        users: Evaluates these users only.
        precision: ``'bf16'`` runs the model under autocast.
        beyond: Add ``'coverage@K'``, ``'personalization@K'`` and ``'popularity@K'``
            of the recommended lists, by :mod:`torch_geometric.metrics`.
        shard: Rank and number of the processes of :mod:`torch.distributed` that share
            the users; all of them must call, and all get the same result.
        progress: Show a progress bar on a terminal.

    Raises:
        ValueError: If no user has a target, the scores are NaN or of a wrong shape,
            or an argument is out of range.
    """
    (result,) = evaluate_protocols(
        model,
        data,
        [protocol],
        split,
        ks=ks,
        batch_size=batch_size,
        max_len=max_len,
        batch_tokens=batch_tokens,
        users=users,
        precision=precision,
        beyond=beyond,
        shard=shard,
        progress=progress,
    )
    return result


def evaluate_protocols(
    model: Recommender,
    data: HeteroData,
    protocols: Sequence[Protocol],
    split: Literal['val', 'test'] = 'test',
    **options: Any,
) -> list[Evaluation]:
    """Does what :func:`evaluate` does, under several protocols at once.

    Those of one history are ranked from the same scores, so that a second mask costs
    next to nothing.

    Args:
        model: The model.
        data: Split interactions.
        protocols: What is read and what is ranked.
        split: ``'val'`` or ``'test'``.
        options: As of :func:`evaluate`.

    Returns:
        The results in the order of the protocols.

    Raises:
        ValueError: As of :func:`evaluate`.
    """
    found: dict[Protocol, Evaluation] = {}
    for history in dict.fromkeys(protocol.history for protocol in protocols):
        own = [protocol for protocol in protocols if protocol.history == history]
        found |= zip(own, _evaluate(model, data, own, split, **options), strict=True)
    return [found[protocol] for protocol in protocols]


def _evaluate(
    model: Recommender,
    data: HeteroData,
    protocols: Sequence[Protocol],
    split: Literal['val', 'test'],
    *,
    ks: Sequence[int] = (10, 20),
    batch_size: int = 1024,
    max_len: int | None = None,
    beyond: bool = False,
    shard: tuple[int, int] = (0, 1),
    **options: Any,
) -> list[Evaluation]:
    """Ranks under protocols of one history."""
    began = time.perf_counter()
    if not ks or min(ks) < 1:
        raise ValueError(f"'ks' needs to hold positive cut-offs (got {tuple(ks)})")
    device, num_users = device_of(model), int(data['user'].num_nodes)
    ranks = torch.zeros(len(protocols), num_users, device=device)
    shape = (len(protocols), num_users, max(ks) if beyond else 0)
    top = torch.zeros(shape, dtype=torch.long, device=device)
    for user, target, masked, (scores,) in held_out(
        [model],
        data,
        split,
        protocols,
        batch_size,
        max_len=max_len,
        shard=shard,
        **options,
    ):
        for index, (row, col) in enumerate(masked):
            ranks[index, user] = target_rank(scores, target, row, col)
            if beyond:
                lists = best(scores, row, col, max(ks), user, argument='ks')[0]
                top[index, user] = lists
        del scores  # before the next ones are there
    if shard[1] > 1:  # every user is in one share and zero in the others
        torch.distributed.all_reduce(ranks)
        if beyond:
            torch.distributed.all_reduce(top)
    user = ranks[0].nonzero().view(-1)
    metrics = [summarize(rank, ks) for rank in ranks[:, user]]
    if beyond:
        item = history_edges(data, 'train').item.to(device)
        popularity = item.bincount(minlength=int(data['item'].num_nodes))
        for own, lists in zip(metrics, top, strict=True):
            own.update(beyond_accuracy(lists[user], ks, popularity))
    seconds = time.perf_counter() - began
    return [
        Evaluation(own, rank.cpu(), user.cpu(), split, protocol, seconds)
        for own, rank, protocol in zip(metrics, ranks[:, user], protocols, strict=True)
    ]


class HeldOut(NamedTuple):
    """A batch of held-out items among all items.

    Args:
        user: The users, :math:`[B]`.
        target: Their held-out items, :math:`[B]`.
        masked: Row of each item that is not ranked and these items, each of shape
            :math:`[M]`, under each of the protocols.
        scores: Scores by each of the models, of shape :math:`[B, I]`.
    """

    user: Tensor
    target: Tensor
    masked: list[tuple[Tensor, Tensor]]
    scores: list[Tensor]


def held_out(
    models: Sequence[Recommender],
    data: HeteroData,
    split: Literal['val', 'test'],
    protocols: Sequence[Protocol],
    batch_size: int,
    *,
    max_len: int | None,
    batch_tokens: int | None = None,
    users: Tensor | Sequence[int] | None = None,
    precision: Precision = 'fp32',
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Iterator[HeldOut]:
    """Scores the users of a split by every model, each batch once.

    Args:
        models: The models, all on one device.
        data: As of :func:`evaluate`, like all others.
        split: ``'val'`` or ``'test'``.
        protocols: What is read, the same in all of them, and what is ranked.
        batch_size: Users scored at once.
        max_len: Number of last items of a history that the models may read;
            :obj:`None` for the most that one of them reads.
        batch_tokens: Bound on users times longest history instead.
        users: These users only.
        precision: ``'bf16'`` runs the models under autocast.
        shard: Rank and number of the processes.
        progress: Show a progress bar.
    """
    if split not in ('val', 'test'):
        raise ValueError(f"'split' needs to be 'val' or 'test' (got {split!r})")
    history = protocols[0].history
    loader = SequenceLoader(
        data,
        split,
        batch_size,
        history_length(models, max_len),
        history=history,
        users=users,
        batch_tokens=batch_tokens,
    )
    if loader.num_rows == 0:
        raise ValueError(
            f"'data' needs at least one user with a '{split}_item' (got none of "
            f'{data["user"].num_nodes} users): histories need three items or more'
        )
    seen = [_masked(data, split, protocol) for protocol in protocols]
    num_items, device = int(data['item'].num_nodes), device_of(models[0])
    folded = split == 'test' and history == 'train+val'
    known = place(fold_in(data) if folded else data, device)
    encoded = []
    for model in models:
        with inference(model, precision):
            encoded.append(model.encode(known))
    for batch in bar(loader.shard(*shard), split, progress):
        masked = []
        for known_items in seen:
            row, col = known_pairs(known_items, batch.user)
            masked.append((row.to(device), col.to(device)))
        batch = batch.to(device)
        scores = []
        # Left before every yield: the caller's code is not part of inference.
        for model, own in zip(models, encoded, strict=True):
            with inference(model, precision):
                scores.append(score_all(model, own, batch, num_items))
        yield HeldOut(batch.user, cast(Tensor, batch.target), masked, scores)


def _masked(data: HeteroData, split: str, protocol: Protocol) -> Histories | None:
    if protocol.mask == 'none':
        return None
    before = 'test' if split == 'test' and protocol.mask == 'seen' else 'train'
    return history_edges(data, before, 'train+val').cpu()  # type: ignore[arg-type]
