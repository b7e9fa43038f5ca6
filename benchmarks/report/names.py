"""What a cell is called, which family it belongs to, and who has printed its like."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report.numbers import setting

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
    'finetune*': 'language model',
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
    'pretrain': 'HeLLMPre',
    'released': 'HeLLMPre, released',
    'nohypergraphs': 'HeLLMPre without hypergraphs',
    'nou2u': 'HeLLMPre without U2U',
    'noi2i': 'HeLLMPre without I2I',
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

# What qualifies a model, of one or two words of a cell's name.
WORDS = {
    'bce': 'BCE',
    'both': 'both features',
    'cl': 'contrast',
    'i2i': 'I2I',
    'llm': 'LLM',
    'none': 'no features',
    'sampled': 'sampled softmax',
    'seq': 'sequence',
    'train val': 'train+val',
    'two sasrecs': 'two SASRecs',
    'u2u': 'U2U',
}
WITHOUT = ('no', 'without')
PARTS = ('cl', 'graph', 'llm', 'prefix', 'seq')  # there is one of each: 'the LLM'
TABLES = {'table': 'Table', 'fig': 'Fig.'}


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


def name_of(
    cell: str,
    recipe: str = '',
    peer: str | None = None,
    grid: Mapping[str, object] | None = None,
) -> Name:
    """Label and family of a cell: ``sasrec_bce`` is 'SASRec, BCE', sequential.

    A name that begins with no known model is left as it is. Where it tells no family,
    that of the recipe does.

    Args:
        cell: Name of the cell.
        recipe: Name of its recipe.
        peer: The other library that trained it.
        grid: The point of its grid, which follows the name.
    """
    pattern = match(cell, FAMILIES) or match(recipe, FAMILIES)
    family = PEER if peer else FAMILIES[pattern] if pattern else OTHER
    label, words = cell, re.split(r'[-_ ]', cell)
    for used in range(len(words), 0, -1):
        if known := LABELS.get(''.join(words[:used]).lower()):
            label = known + _qualifiers(words[used:])
            break
    if grid:
        values = {key.rpartition('.')[2]: setting(grid[key]) for key in grid}
        point = ', '.join(f'{key}={value}' for key, value in values.items())
        label = point if point.startswith(f'{cell}=') else f'{label}: {point}'
    return Name(label, family)


def _qualifiers(words: list[str]) -> str:
    """What follows a model: ', 8 layers', ', BCE', ' without the LLM'."""
    text, after = '', ''
    while words:
        used = 2 if ' '.join(words[:2]) in WORDS and len(words) > 1 else 1
        word, words = ' '.join(words[:used]), words[used:]
        if word in WITHOUT:
            text += ' without'
        elif after in WITHOUT:
            text += ' the ' * (word in PARTS) or ' '
            text += WORDS.get(word, word)
        else:  # words that nobody knows stay together
            joined = after and word not in WORDS and after not in WORDS
            text += f'{" " if joined else ", "}{WORDS.get(word, word)}'
        after = word
    return text


def title_of(table: str) -> str:
    """How a table of experiments is called: ``fig3_reduced`` is 'Fig. 3, reduced'."""
    first, *others = table.split('_')
    found = re.fullmatch(r'([a-z]+)(\d+)', first)
    if found is None or found[1] not in TABLES:
        return table.replace('_', ' ')
    return ', '.join([f'{TABLES[found[1]]} {found[2]}', *others])


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
    """The printed row of a cell, the first of several sources."""
    return next(iter(printed_all(cell, dataset)), None)


def printed_all(cell: str, dataset: str) -> list[Printed]:
    """The printed rows of a cell: those with the longest pattern that it matches."""
    rows = [
        (match(cell, row['cells']), _row(table, row, dataset))
        for table in tables()
        for row in table['rows']
        if dataset in row
    ]
    longest = max((len(pattern) for pattern, _ in rows if pattern), default=0)
    return [row for pattern, row in rows if pattern and len(pattern) == longest]
