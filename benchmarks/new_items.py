"""How well items are recommended that came after the training.

    python -m benchmarks.new_items --data ../data
    python -m benchmarks.new_items --recipe sasrec_best --dataset toys --data ../data

A tenth of a data set's items is taken out of it, a model is trained on what is left,
and users whose last item is among those taken out are asked for it after the rest of
their history, among the new items and among all. The new items' scores are those of
their neighbours by the texts (:class:`hellm_pyg.new_items.NewItems`); half of these
users choose how many neighbours, by N@10 among all items, the other half is reported.
Beside it stand the texts alone (how like the history's an item's text is), chance, and
the same recipe trained on all items, to which none is new. All read users as unknown
ones, by their history. ``new`` is the share of new items in lists of 10, which a method
could raise beyond that of the test items to look well here. A second call goes on where
the first was stopped.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import atomic, save_json
from hellm_pyg.config import load_config
from hellm_pyg.data import SequenceBatch
from hellm_pyg.data.features import missing_rows
from hellm_pyg.data.split import history_edges
from hellm_pyg.datasets import IdMap
from hellm_pyg.evaluation import rank, summarize
from hellm_pyg.experiment import Run, load_run, pretrain
from hellm_pyg.new_items import NewItems
from hellm_pyg.training.record import commit, versions

RESULTS = Path(__file__).parent / 'results' / 'new_items'
NEIGHBORS = (1, 2, 5, 10, 20, 50)
KS = (10, 20)
SHARE = 0.1


class Cases(NamedTuple):
    """Users whose last item is new, in the ids of the files."""

    user: list[Any]
    history: list[list[Any]]  # all but new items
    target: list[Any]

    def some(self, rows: Sequence[int]) -> Cases:
        """Some of them."""
        return Cases(*([values[row] for row in rows] for values in self))


class Likeness(torch.nn.Module):
    """Scores items by the cosine of their text and the mean of the history's texts."""

    def encode(self, data: HeteroData) -> Tensor:
        """Texts of unit length, zero where there is none, [I, F]."""
        return F.normalize(data['item'].x_text.nan_to_num(), dim=-1)

    def score(self, encoded: Tensor, batch: SequenceBatch) -> Tensor:
        """Similarities, [B, I]."""
        x = encoded.new_zeros(batch.batch_size, encoded.size(1))
        x.index_add_(0, batch.batch, encoded[batch.item])
        return F.normalize(x, dim=-1) @ encoded.T


def take_out(data: HeteroData, seed: int) -> Tensor:
    """The items that are taken out, of those with a text."""
    generator = torch.Generator().manual_seed(seed)
    present = (~missing_rows(data['item'].x_text)).nonzero().view(-1)
    order = torch.randperm(present.numel(), generator=generator)
    return present[order[: round(SHARE * present.numel())]].sort().values


def split_off(run: Run, new: set[Any], path: Path) -> Cases:
    """Writes the interactions without the new items; returns who is asked for one."""
    known, lines, cases = history_edges(run.data, 'all'), [], Cases([], [], [])
    histories = known.item.split(known.length.tolist())
    held_out = run.data['user'].test_item >= 0
    for user, items, asked in zip(run.ids.users, histories, held_out, strict=True):
        own = run.ids.item_id(items)
        rest = [item for item in own if item not in new]
        if rest:
            lines.append(' '.join(map(str, [user, *rest])) + '\n')
        if rest and asked and own[-1] in new:
            cases.user.append(user)
            cases.history.append(rest)
            cases.target.append(own[-1])
    with atomic(path) as temporary:
        temporary.write_text(''.join(lines))
    return cases


def measure(
    model: Any,
    data: HeteroData,
    ids: IdMap,
    cases: Cases,
    new: Sequence[Any],
    alone: bool,
    **options: Any,
) -> dict[str, float]:
    """Metrics of the targets, and the share of new items in lists of 10.

    Args:
        model: The model.
        data: What it was trained on.
        ids: Ids of all items, the new ones included.
        cases: Who is asked.
        new: The new items.
        alone: Whether they alone are ranked.
        options: Further ones of :func:`~hellm_pyg.evaluation.rank`.
    """
    items = [ids.item_index(history) for history in cases.history]
    length = torch.tensor([item.numel() for item in items])
    row = torch.arange(len(items)).repeat_interleave(length)
    user = torch.full((len(items),), -1)
    batch = SequenceBatch(user, torch.cat(items), row)
    index = ids.item_index(new)
    if alone:
        options['candidates'] = index
    listed, _ = rank(model, data, batch, KS[-1], allow_fewer=True, **options)
    hit = listed == ids.item_index(cases.target).unsqueeze(1)
    behind = KS[-1] + 1  # where the target is not in the list
    place = torch.where(hit.any(dim=1), hit.int().argmax(dim=1) + 1, behind)
    share = torch.isin(listed[:, : KS[0]], index).float().mean()
    return {**summarize(place.float(), KS), 'new': float(share)}


def compare(
    whole: Run, part: Run, new: list[Any], cases: Cases, seed: int
) -> dict[str, Any]:
    """Metrics of the chosen number of neighbours, and of what it is compared with."""
    order = torch.randperm(
        len(cases.user), generator=torch.Generator().manual_seed(seed)
    )
    half = order.numel() // 2
    choice, report = (
        cases.some(order[:half].tolist()),
        cases.some(order[half:].tolist()),
    )
    every = part.ids.with_items(new)
    x = whole.data['item'].x_text[whole.ids.item_index(new)]

    def neighbors(k: int, cases: Cases, alone: bool) -> dict[str, float]:
        scores = NewItems(new, {'text': x}, k=k).scores(part.data)
        return measure(
            part.model, part.data, every, cases, new, alone, neighbor_scores=scores
        )

    ranked = {'all': False, 'new': True}
    chosen = {
        k: {name: neighbors(k, choice, alone) for name, alone in ranked.items()}
        for k in NEIGHBORS
    }
    k = max(chosen, key=lambda k: chosen[k]['all']['N@10'])
    known = copy.copy(whole.data)  # without the items that are asked for
    held_out = known['user'].test_item.clone()
    asked = whole.ids.user_index(cases.user)
    held_out[asked] = -1
    known['user'].test_item = held_out
    rows = {
        name: {
            f'as {k} neighbour{"s" * (k > 1)}': neighbors(k, report, alone),
            'texts alone': measure(Likeness(), known, whole.ids, report, new, alone),
            'all items known': measure(
                whole.model, known, whole.ids, report, new, alone
            ),
        }
        for name, alone in ranked.items()
    }
    natural = len(cases.user) / int((whole.data['user'].test_item >= 0).sum())
    size = len(new)
    chance = {f'R@{k}': min(k / size, 1) for k in KS}
    return {
        'new items': size,
        'known items': part.ids.num_items,
        'users of the choice': len(choice.user),
        'users of the report': len(report.user),
        'choice': chosen,
        'neighbors': k,
        'report': rows,
        'chance among the new': chance,
        'share of new test items': natural,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        'benchmarks.new_items',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--recipe', default='sasrec_best')
    parser.add_argument('--dataset', default='beauty', help='of sequence text')
    parser.add_argument('--data', type=Path, help='folder of the data (HELLM_DATA)')
    parser.add_argument('--seed', type=int, default=2024)
    parser.add_argument('--runs', type=Path, default=Path('runs/new_items'))
    args = parser.parse_args()
    if args.data is not None:
        os.environ['HELLM_DATA'] = str(args.data.absolute())
    folder, seed = args.runs / args.dataset, args.seed
    overrides = [f'dataset={args.dataset}', f'train.seed={seed}']
    run_dir = folder / args.recipe / f'whole-{seed}'
    pretrain(load_config(args.recipe, overrides), run_dir)
    whole = load_run(run_dir)
    new = whole.ids.item_id(take_out(whole.data, seed))
    rest = folder / f'rest-{seed}.txt'
    cases = split_off(whole, set(new), rest)
    overrides += [f'data.interactions={rest}', f'data.root={folder / "cache"}']
    run_dir = folder / args.recipe / f'part-{seed}'
    pretrain(load_config(args.recipe, overrides), run_dir)
    part = load_run(run_dir)
    result = {
        'command': shlex.join(['python', '-m', 'benchmarks.new_items', *sys.argv[1:]]),
        'commit': commit(),
        'versions': versions(),
        'seed': seed,
        **compare(whole, part, new, cases, seed),
    }
    save_json(RESULTS / f'{args.dataset}-{args.recipe}-{seed}.json', result)
    names = [*(f'{metric}@{k}' for k in KS for metric in 'RN'), 'new']
    for among, rows in result['report'].items():
        print(f'\n| among {among} items | {" | ".join(names)} |\n|---{"|--:" * 5}|')
        for name, metrics in rows.items():
            print(f'| {name} | {" | ".join(f"{metrics[m]:.4f}" for m in names)} |')
    for name in ('chance among the new', 'share of new test items'):
        print(f'{name}: {result[name]}')


if __name__ == '__main__':
    main()
