"""What a cell is called, which family it belongs to, and who has printed its like."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

EXPECTED = Path(__file__).parents[1] / 'paper' / 'expected.json'

# Patterns match names without '_' and '-'; of several the longest decides.
FAMILIES = {
    'popularity*': 'floor',
    'itemknn*': 'floor',
    'lightgcn*': 'graph',
    'vbpr*': 'multimodal',
    'grcn*': 'multimodal',
    'lattice*': 'multimodal',
    'slmrec*': 'multimodal',
    'bm3*': 'multimodal',
    'freedom*': 'multimodal',
    'hellmpre*': 'hypergraph',
    'pretrain*': 'hypergraph',
    'released*': 'hypergraph',
    'nohypergraphs*': 'hypergraph',
    'nou2u*': 'hypergraph',
    'noi2i*': 'hypergraph',
    'sasrec*': 'sequential',
    'gru4rec*': 'sequential',
    'collm*': 'language model',
    'llara*': 'language model',
    'e4srec*': 'language model',
    'hellm*': 'language model',
    'ensemble*': 'ensemble',
}
PEER, OTHER = 'other library', 'other'
ORDER = (*dict.fromkeys(FAMILIES.values()), PEER, OTHER)

LABELS = {
    'popularity': 'Popularity',
    'itemknn': 'Item-kNN',
    'lightgcn': 'LightGCN',
    'vbpr': 'VBPR',
    'grcn': 'GRCN',
    'lattice': 'LATTICE',
    'slmrec': 'SLMRec',
    'bm3': 'BM3',
    'freedom': 'FREEDOM',
    'hellmpre': 'HeLLMPre',
    'sasrec': 'SASRec',
    'gru4rec': 'GRU4Rec',
    'collm': 'CoLLM',
    'llara': 'LLaRA',
    'e4srec': 'E4SRec',
    'hellm': 'HeLLM',
    'ensemble': 'Ensemble',
    'rectoolssasrec': 'RecTools SASRec',
    'implicitals': 'implicit ALS',
    'implicitbpr': 'implicit BPR',
    'cornacvbpr': 'cornac VBPR',
}


class Name(NamedTuple):
    """How a model is shown."""

    label: str
    family: str


class Printed(NamedTuple):
    """A row that others have printed."""

    source: str
    model: str
    protocol: str
    metrics: dict[str, float]


def _plain(name: str) -> str:
    return re.sub(r'[-_ ]', '', name).lower()


def match(name: str, patterns: Iterable[str]) -> str | None:
    """The longest pattern that a name matches, or :obj:`None`."""
    found = [p for p in patterns if fnmatch.fnmatchcase(_plain(name), p)]
    return max(found, key=len, default=None)


def name_of(cell: str, recipe: str = '', peer: str | None = None) -> Name:
    """Label and family of a cell: ``sasrec_bce`` is 'SASRec bce', sequential.

    Where the name tells no family, that of the recipe does.
    """
    pattern = match(cell, FAMILIES) or match(recipe, FAMILIES)
    family = PEER if peer else FAMILIES[pattern] if pattern else OTHER
    words = re.split(r'[-_ ]', cell)
    for used in range(len(words), 0, -1):
        if label := LABELS.get(''.join(words[:used]).lower()):
            return Name(' '.join([label, *words[used:]]), family)
    return Name(cell, family)


def tables(path: Path = EXPECTED) -> list[dict[str, Any]]:
    """The tables that others have printed."""
    return json.loads(path.read_text())


def _row(table: Mapping[str, Any], row: Mapping[str, Any], dataset: str) -> Printed:
    metrics = dict(zip(table['metrics'], row[dataset], strict=True))
    return Printed(table['source'], row['model'], row['protocol'], metrics)


def printed_rows(dataset: str) -> list[tuple[str, list[Printed]]]:
    """All printed rows for a data set, by source."""
    return [
        (
            table['source'],
            [_row(table, row, dataset) for row in table['rows'] if dataset in row],
        )
        for table in tables()
        if any(dataset in row for row in table['rows'])
    ]


def printed_for(cell: str, dataset: str) -> Printed | None:
    """The printed row of a cell: that of the longest pattern, the first of equals."""
    best: tuple[int, Printed] | None = None
    for table in tables():
        for row in table['rows']:
            pattern = match(cell, row['cells']) if dataset in row else None
            if pattern and (best is None or len(pattern) > best[0]):
                best = len(pattern), _row(table, row, dataset)
    return best[1] if best else None
