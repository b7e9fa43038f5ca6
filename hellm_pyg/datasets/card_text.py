"""A data card as Markdown, with histograms that any reader shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 40
EIGHTHS = ' ▏▎▍▌▋▊▉'


def card_markdown(card: Mapping[str, Any]) -> str:
    """The Markdown of a data card.

    Args:
        card: What :func:`~hellm_pyg.datasets.card.data_card` returned.
    """
    sections = [
        _heading(card),
        _counts(card),
        _lengths(card['lengths']),
        _popularity(card['popularity']),
        _years(card['times']),
        _section('Split', _table(['', ''], _spaced(card['split']))),
        _items(card),
        _text(card['template']),
        _encoders(card['modalities']),
        _dropped(card['dropped']),
        _section('Settings', _table(['Setting', 'Value'], _spaced(card['settings']))),
        _files(card),
        _section('Notes', '\n'.join(f'- {_line(note)}' for note in card['notes'])),
    ]
    return '\n\n'.join(section for section in sections if section) + '\n'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """A histogram in a block of text.

    Args:
        rows: Label, size (not negative) and the size as it is shown.
    """
    if not rows:
        return ''
    largest = max(size for _, size, _ in rows) or 1
    label = max(len(name) for name, _, _ in rows)
    number = max(len(shown) for _, _, shown in rows)
    lines = [
        f'{name:>{label}}  {shown:>{number}}  {_bar(size / largest)}'.rstrip()
        for name, size, shown in rows
    ]
    return '\n'.join(['```text', *lines, '```'])


def _bar(part: float) -> str:
    eighths = round(part * WIDTH * 8)
    if part > 0:
        eighths = max(eighths, 1)
    return '█' * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _heading(card: Mapping[str, Any]) -> str:
    lines = [f'# {_line(card["name"]) or "Data"}', '', _line(card['source'])]
    return '\n'.join(lines).strip()


def _counts(card: Mapping[str, Any]) -> str:
    counts, times = card['counts'], card['times']
    rows = {
        'users': counts['users'],
        'items': counts['items'],
        'interactions': counts['interactions'],
        'sparsity': f'{100 * counts["sparsity"]:.4f} %',
    }
    if times:
        rows['times'] = ' to '.join(
            str(times.get(f'{end} day', times[end])) for end in ('first', 'last')
        )
    rows['fingerprint'] = f'`{card["fingerprint"]}`' if card['fingerprint'] else ''
    return _table(['', ''], [(k, v) for k, v in rows.items() if v != ''], escape=False)


def _lengths(lengths: Mapping[str, Any]) -> str:
    return _section('Interactions of a user', _said(lengths), _binned(lengths, 'users'))


def _popularity(popularity: Mapping[str, Any]) -> str:
    shares = bars(
        [
            (f'top {percent} %', share, f'{100 * share:.1f} %')
            for percent, share in popularity['top shares'].items()
        ]
    )
    said = f'{_said(popularity)} Gini coefficient {popularity["gini"]:.3f}.'
    return _section(
        'Interactions of an item',
        said,
        _binned(popularity, 'items'),
        'Part of all interactions that the most popular items have:' if shares else '',
        shares,
    )


def _said(summary: Mapping[str, Any]) -> str:
    return (
        f'Mean {summary["mean"]:.2f}, median {summary["median"]:g}, '
        f'{summary["smallest"]:,} to {summary["largest"]:,}.'
    )


def _binned(summary: Mapping[str, Any], what: str) -> str:
    return bars(
        [
            (_range(step['from'], step['to']), n, f'{n:,} {what}')
            for step in summary['histogram']
            for n in [step['count']]
        ]
    )


def _range(first: int, last: int) -> str:
    return f'{first:,}' if first == last else f'{first:,}-{last:,}'


def _years(times: Mapping[str, Any]) -> str:
    years = times.get('years', {})
    return _section('Years', bars([(y, n, f'{n:,}') for y, n in years.items()]))


def _items(card: Mapping[str, Any]) -> str:
    total = card['counts']['items']
    rows = [
        (name, f'{modality["width"]} features', *_coverage(modality['present'], total))
        for name, modality in card['modalities'].items()
    ]
    rows += [(name, '', *_coverage(n, total)) for name, n in card['columns'].items()]
    outcomes = [(name, n) for name, n in card['images'].items()]
    return _section(
        'What is known about items',
        _table(['', '', 'present', 'missing', 'coverage'], rows),
        _table(['Images', 'items'], outcomes),
    )


def _coverage(present: int, total: int) -> tuple[int, int, str]:
    return present, total - present, f'{100 * present / max(total, 1):.2f} %'


def _text(template: str) -> str:
    return _section('Text of an item', f'> {_line(template)}' if template else '')


def _encoders(modalities: Mapping[str, Any]) -> str:
    rows = [
        (name, key, value)
        for name, modality in modalities.items()
        for key, value in modality['encoder'].items()
        if value not in ([], {}, '')
    ]
    return _section('Encoders', _table(['Modality', '', ''], rows))


def _dropped(dropped: Mapping[str, int]) -> str:
    return _section('Left out', _table(['Why', 'rows'], list(dropped.items())))


def _files(card: Mapping[str, Any]) -> str:
    names = [n for n in ('bytes', 'sha256') if any(n in file for file in card['files'])]
    rows = [
        (file['name'], *(file.get(name, '') for name in names))
        for file in card['files']
    ]
    return _section('Files', _table(['File', *names], rows))


def _section(title: str, *parts: str) -> str:
    parts = tuple(part for part in parts if part)
    return '\n\n'.join([f'## {title}', *parts]) if parts else ''


def _spaced(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name.replace('_', ' '), value) for name, value in values.items()]


def _table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], escape: bool = True
) -> str:
    lines = [[_cell(value, escape) for value in row] for row in rows]
    if not lines:
        return ''
    all_lines = [list(head), ['---'] * len(head), *lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in all_lines)


def _cell(value: Any, escape: bool) -> str:
    if isinstance(value, bool) or value is None:
        return {True: 'yes', False: 'no', None: '-'}[value]
    if isinstance(value, int):
        return f'{value:,}'
    if isinstance(value, Mapping | list):
        value = json.dumps(value, ensure_ascii=False)
    return _line(str(value)) if escape else str(value)


def _line(text: str) -> str:
    """Text of strangers on one line, which Markdown does not read as markup."""
    plain = ' '.join(text.split())
    return ''.join(f'\\{c}' if c in '\\`*_[]<>|#' else c for c in plain)
