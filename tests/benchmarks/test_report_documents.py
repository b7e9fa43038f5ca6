import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.latex import escape
from benchmarks.report.plan import PAPER
from benchmarks.report.prose import blocks, spans
from benchmarks.table import cells, load_table
from tests.benchmarks.fabricate import (
    HEADLINE,
    TRAIN,
    ranks,
    refit,
    result,
    search,
    trial,
    write,
)

VOID = {'meta', 'br'}


class Page(HTMLParser):
    """Checks that elements are closed in order and collects what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attrs: list) -> None:
        self.seen.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    folder = tmp_path / 'results' / 'table1'
    for i, name in enumerate(('lightgcn', 'hellm_pre', 'sasrec', 'sasrec_bce')):
        for seed in (1, 2):
            rank = ranks(300, 1 + i, 10 * i + seed)
            write(folder, result(name, rank, seed=seed, epochs=3 + i))
    for name in ('sasrec_refit', 'hellm_refit'):
        write(folder, refit(name, ranks(300, 90, len(name))))
    write(folder, result('popularity', ranks(300, 0.5, 1), validation={}))
    tuned = {'recipe': 'benchmarks/recipes/vbpr.yaml', 'dataset': 'toys'}
    write(folder, result('vbpr', ranks(200, 1, 1), **tuned))
    for k in (1, 5):
        point = {'cell': 'knn', 'grid': {'data.knn': k}}
        write(folder, result(f'knn-{k}', ranks(300, 1, k), **point))
        for a in (0, 0.5):
            point = {'cell': 'both', 'grid': {'model.alpha': a, 'model.beta': k}}
            write(folder, result(f'both-{a}-{k}', ranks(300, 1 + a, k), **point))
    (folder / 'NOTES.md').write_text('Features: **text** only.\n\n- a `b` & <c>\n')
    failure = {'name': 'grcn', 'dataset': 'beauty', 'seed': 1, 'error': '<b>\nboom'}
    (folder / 'beauty-grcn-1.failed.json').write_text(json.dumps(failure))
    space = {'train.lr': [0.001, 0.003]}
    runs = [
        trial({'train.lr': 0.001}, 'complete', 0.0321),
        trial({'train.lr': 0.003}, 'pruned', 0.01),
    ]
    content = search('sports', runs, space, 0)
    content['carried'] = {'toys': search('toys', runs, space, 0)}
    (folder.parent / 'search').mkdir()
    for name in ('vbpr', 'unused'):
        (folder.parent / 'search' / f'{name}.json').write_text(json.dumps(content))
    return folder


@pytest.fixture
def written(folder: Path) -> dict[str, str]:
    quick = ['--resamples', '50', '--signs', '200']
    assert main([str(folder), *quick]) == 0
    return {s: (folder / f'RESULTS.{s}').read_text() for s in ('md', 'tex', 'html')}


def test_markdown(written: dict[str, str]) -> None:
    text = written['md']
    tables = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        widths = {len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}
        assert len(widths) == 1
    places = ['## Overview of Table 1', '## Beauty, Table 1', '## Toys, Table 1']
    assert sorted(places, key=text.index) == places
    assert f'### Test, {HEADLINE}' in text
    assert re.search(r'\| LightGCN \| 2 \| [0-9.]+ ± [0-9.]+ \[[0-9.]+, ', text)
    assert '| 0.0426† | 0.0208† |' in text
    assert 'Features: **text** only.' in text
    assert '- `grcn`, seed 1: <b> boom' in text
    assert 'Against SASRec, BCE, the best on validation N@10' in text
    assert 'Against LightGCN, the chosen baseline' in text
    budget = '3 trials of 5 min | 1 complete, 1 pruned | 2.8 min | 2 of 2 | 0.0321 |'
    assert text.count(f'| vbpr | toys, from sports | {budget}') == 1
    assert text.count('3 trials of 5 min') == 1  # the one that wrote a recipe
    assert '### Expectations\n\n#### HeLLM (arXiv:2504.10541), Table 1' in text
    assert '| LightGCN | LightGCN | history=train, mask=train | 0.0426 |' in text
    cost = '| 10 s | 31 s | 600 | 3k | 27k | - | 803 MB | cpu, 2 threads |'
    assert f'| 3, 3 | 3, 3 {cost}' in text
    assert 'No slices' in text
    assert '`hellm pretrain lightgcn train.seed=2`' in text


def test_what_saw_the_validation_items_stands_apart(written: dict[str, str]) -> None:
    text = written['md'].split('## Toys')[0]
    parts = re.split(r'^#{2,4} ', text, flags=re.MULTILINE)[1:]
    own = {part.partition('\n')[0]: part for part in parts if 'SASRec, refit' in part}
    shown = ['Overview of Table 1', f'Test, {HEADLINE}', f'Test, {TRAIN}']
    alone = [f'{title}, trained on the validation items, too' for title in shown]
    assert list(own) == [*alone, 'Training', 'Provenance']
    for title, part in own.items():
        assert re.search('Trained on the validation items, too: .*SASRec, refit', part)
        assert ('**' in part) is (title in alone)
    for title in shown:
        (part,) = (part for part in parts if part.startswith(f'{title}\n'))
        assert '**' in part
    tests = [part for part in parts if part.startswith('Against')]
    assert tests
    for part in tests:
        assert 'What is trained on the validation items, too, is left out.' in part
    page = written['html']
    assert '<h3>Accuracy, trained on the validation items, too</h3>' in page
    scatter = page.split('aria-label="test N@10 against training time')[1]
    assert 'refit<' not in scatter.split('</svg>')[0]


def test_texts_hold_for_every_result(written: dict[str, str]) -> None:
    text = written['md']
    for claim in ('were chosen on validation', 'once a protocol', 'without validation'):
        assert claim not in text
    assert 'Earlier looks at them are a matter of the notes' in text
    assert 'that of an ensemble is all that its members took' in text


def test_results_of_other_settings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    folder = tmp_path / 'table1'
    (cell,) = (
        cell
        for cell in cells(load_table(PAPER / 'table1.yaml'))
        if cell.key == 'beauty-item_knn-2024'
    )
    own = {'recipe': cell.recipe, 'overrides': cell.overrides, 'seed': cell.seed}
    write(folder, result('item_knn', ranks(50, 1, 1), **own))
    write(folder, result('popularity', ranks(50, 9, 2), **own))  # ranks best
    write(folder, result('vbpr', ranks(50, 1, 4), seed=1))
    write(folder, result('popularity', ranks(50, 1, 3), seed=1))  # no such seed there
    assert main([str(folder), '--resamples', '20', '--signs', '20']) == 0
    text = (folder / 'RESULTS.md').read_text()
    assert 'Outdated files: beauty-popularity-2024.\n' in text
    tables = re.split(r'^#{2,4} ', text, flags=re.MULTILINE)
    (found,) = (part for part in tables if part.startswith(f'Test, {HEADLINE}\n'))
    rows = {row.split(' | ')[0]: row for row in found.splitlines() if '| ' in row}
    assert '**' not in rows['| Popularity ‡']
    assert '**' in rows['| Item-kNN'] + rows['| VBPR']
    assert '‡ Outdated: of other settings or protocols' in found
    (tests,) = (part for part in tables if part.startswith('Against'))
    assert 'What is outdated (‡) is left out.' in tests
    assert '| Popularity' not in tests
    page = (folder / 'RESULTS.html').read_text()
    assert '>Popularity ‡<' in page
    assert r'Popularity \textsuperscript{\ddag}' in (folder / 'RESULTS.tex').read_text()


def test_the_base_of_a_table_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    monkeypatch.setattr('benchmarks.report.plan.PAPER', tmp_path)
    cells = '{one: {recipe: sasrec}, two: {recipe: sasrec}, three: {recipe: sasrec}}'
    (tmp_path / 'mine.yaml').write_text(
        f'{{datasets: [beauty], seeds: [1], protocols: [], base: two, cells: {cells}}}'
    )
    for i, name in enumerate(('one', 'two', 'three')):
        write(tmp_path / 'mine', result(name, ranks(50, 9 - i, i)))
    arguments = [str(tmp_path / 'mine'), '--resamples', '20', '--signs', '20']
    for more, base in (([], 'two'), (['--baseline', 'three'], 'three')):
        assert main([*arguments, *more]) == 0
        text = (tmp_path / 'mine' / 'RESULTS.md').read_text()
        assert 'Against one, the best on validation N@10' in text
        assert f'Against {base}, the chosen baseline' in text
        assert text.count('the chosen baseline') == 1


def test_page_is_whole_and_asks_for_nothing(written: dict[str, str]) -> None:
    text = written['html']
    page = Page(text)
    assert page.open == []
    names = {name for name, _ in page.seen}
    assert not names & {'script', 'link', 'img', 'iframe', 'object'}
    for name, attributes in page.seen:
        for key, value in attributes.items():
            assert key not in {'src', 'srcset', 'onclick', 'onload'}
            if key == 'href':
                assert name == 'a'
                assert str(value).startswith('#')
    assert not re.search(r'url\(|@import|https?://', text)
    ids = {a['id'] for _, a in page.seen if 'id' in a}
    assert {a['href'] for n, a in page.seen if n == 'a'} == {f'#{i}' for i in ids}
    assert '<b>' not in text.replace('&lt;b&gt;', '')
    assert '<strong>text</strong> only.' in text


def test_plots_have_every_model_and_no_bad_number(written: dict[str, str]) -> None:
    text = written['html']
    assert not re.search(r'="-?(nan|inf)|[ ,]nan[ ,"]', text)
    drawn = r'<svg [^>]*aria-label="([^"]*)"[^>]*>(.*?)</svg>'
    plots = dict(reversed(re.findall(drawn, text, re.DOTALL)))  # those of Beauty
    for name in (
        'N@10 of every model',
        'validation N@10 against epoch',
        'test N@10 against training time',
        'test N@10 against ranking 1,000 users',
    ):
        for model in ('LightGCN', 'SASRec, BCE', 'HeLLMPre'):
            assert f'>{model}<' in plots[name], (name, model)
    assert plots['validation N@10 against epoch'].count('class="curve') == 8
    assert plots['N@10 against data.knn'].count('class="dot chosen"') == 2
    assert plots['test N@10 over model.alpha and model.beta'].count('"cell"') == 4
    assert '>Popularity<' not in plots['validation N@10 against epoch']


def test_latex(written: dict[str, str]) -> None:
    text = written['tex']
    for kind in ('table*', 'tabular'):
        begun = text.count(rf'\begin{{{kind}}}')
        assert begun == text.count(rf'\end{{{kind}}}') > 8
    depth = 0
    plain = re.sub(r'\\[\\{}%]|%.*', '', text)
    for found in re.findall('[{}]', plain):
        depth += 1 if found == '{' else -1
        assert depth >= 0
    assert depth == 0
    for align, body in re.findall(
        r'\\begin{tabular}{@{}(\w+)@{}}\n\\toprule\n(.*?)\\bottomrule', text, re.DOTALL
    ):
        for row in body.replace('\\midrule\n', '').strip().splitlines():
            assert len(re.findall(r'(?<!\\)&', row)) == len(align) - 1
    labels = re.findall(r'\\label{(.*?)}', text)
    assert len(set(labels)) == len(labels)
    assert escape('a_b & 5 % {±}') == r'a\_b \& 5 \% \{$\pm$\}'


def test_several_folders_share_a_report(folder: Path, tmp_path: Path) -> None:
    other = folder.parent / 'table3'
    write(other, result('hellm_pre', ranks(100, 1, 1)))
    quick = ['--resamples', '20', '--signs', '20']
    assert main([str(folder), str(other), *quick]) == 0
    text = (folder.parent / 'RESULTS.md').read_text()
    assert '## Beauty, Table 1' in text
    assert '## Beauty, Table 3' in text
    assert main([str(other), '--out', str(tmp_path / 'out'), *quick]) == 0
    assert (tmp_path / 'out' / 'RESULTS.html').is_file()
    assert not (other / 'RESULTS.md').exists()


def test_report_of_validation_alone(tmp_path: Path) -> None:
    alone = {'recipe': 'finetune_best', 'test': {}, 'ranks': {}}
    point = {'cell': 'layers', 'grid': {'llm.num_layers': 8}}
    for k, name, own in ((4, 'best', {}), (8, 'layers-num_layers=8', point)):
        write(tmp_path / 'levers', result(name, ranks(300, k, k), **own, **alone))
    write(tmp_path / 'levers', result('sasrec', ranks(300, 90, 1), test={}, ranks={}))
    main([str(tmp_path / 'levers')])
    text = (tmp_path / 'levers' / 'RESULTS.md').read_text()
    assert 'its protocols are none, for validation alone was read' in text
    assert '3 trained cells, seed 1, validation alone was read.' in text
    places = ['### Ladder', '| SASRec |', '| best | the base |']
    assert sorted(places, key=text.index) == places
    for absent in ('### Test', 'Expectations', 'Printed by others', 'slices'):
        assert absent not in text
    assert text.count('| layers: num_layers=8 |') == 2  # the ladder and the cost
    page = (tmp_path / 'levers' / 'RESULTS.html').read_text()
    assert Page(page).open == []
    drawn = r'<svg [^>]*aria-label="([^"]*)"[^>]*>(.*?)</svg>'
    plots = dict(re.findall(drawn, page, re.DOTALL))
    for metric in ('N@10', 'R@10'):
        plot = plots[f'validation {metric} of every model']
        assert plot.count('class="dot"') == 2  # another family is on no axis with them
        assert plot.count('class="base"') == 1
    assert '>SASRec<' in plots['validation N@10 against epoch']


@pytest.mark.parametrize('table', ['fig3_reduced', 'fig3'])
def test_reduced_grids_are_called_so(tmp_path: Path, table: str) -> None:
    for a in (0, 0.5):
        for b in (0.1, 0.9):
            point = {'cell': 'weights', 'grid': {'model.alpha': a, 'model.beta': b}}
            content = result(f'weights-{a}-{b}', ranks(60, 1 + a, 1), **point)
            write(tmp_path / table, content)
        point = {'cell': 'knn', 'grid': {'data.knn': a}}
        write(tmp_path / table, result(f'knn-{a}', ranks(60, 1 + a, 1), **point))
    main([str(tmp_path / table), '--resamples', '20', '--signs', '20'])
    page = (tmp_path / table / 'RESULTS.html').read_text()
    for title in ('One parameter at a time', 'weights: model.alpha and model.beta'):
        assert (f'{title} (reduced grid)' in page) is (table == 'fig3_reduced')
    assert page.count('aria-label="N@10 against data.knn"') == 1
    assert page.count('aria-label="validation N@10 over model.alpha') == 1


def test_report_of_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert 'needs results' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['lightgnc', 'sasrec_refit'])
def test_unknown_baseline_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([str(folder), '--baseline', name]) == 2
    assert "'baseline' needs to be one of ['hellm_pre'," in capsys.readouterr().err


def test_notes() -> None:
    text = 'One\nline.\n\nA list:\n- first\n  goes on\n- second `x`\n\nEnd **it**.'
    found = blocks(text)
    assert found == [
        (['One line.'], False),
        (['A list:'], False),
        (['first goes on', 'second `x`'], True),
        (['End **it**.'], False),
    ]
    shown = spans('a **b** `c*` 2*3', str.upper, '<{}>'.format, '[{}]'.format)
    assert shown == 'A <b> [c*] 2*3'
