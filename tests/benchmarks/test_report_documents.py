import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.latex import escape
from benchmarks.report.prose import blocks, spans
from tests.benchmarks.fabricate import HEADLINE, ranks, result, write

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
    write(folder, result('popularity', ranks(300, 0.5, 1), validation={}))
    write(folder, result('vbpr', ranks(200, 1, 1), dataset='toys'))
    for k in (1, 5):
        point = {'cell': 'knn', 'grid': {'data.knn': k}}
        write(folder, result(f'knn-{k}', ranks(300, 1, k), **point))
        for a in (0, 0.5):
            point = {'cell': 'both', 'grid': {'model.alpha': a, 'model.beta': k}}
            write(folder, result(f'both-{a}-{k}', ranks(300, 1 + a, k), **point))
    (folder / 'NOTES.md').write_text('Features: **text** only.\n\n- a `b` & <c>\n')
    failure = {'name': 'grcn', 'dataset': 'beauty', 'seed': 1, 'error': '<b>\nboom'}
    (folder / 'beauty-grcn-1.failed.json').write_text(json.dumps(failure))
    carried = {
        'recipe': 'vbpr',
        'dataset': 'toys',
        'trials': 3,
        'minutes': 5.0,
        'runs': [{'state': 'complete'}, {'state': 'pruned'}, {'state': 'pruned'}],
        'best': {'values': {'train.lr': 0.001}, 'N@10': 0.0321},
    }
    search = {**carried, 'dataset': 'sports', 'carried': {'toys': carried}}
    (folder.parent / 'search').mkdir()
    (folder.parent / 'search' / 'vbpr.json').write_text(json.dumps(search))
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
    assert text.index('## Beauty, table1') < text.index('## Toys, table1')
    assert f'### Test, {HEADLINE}' in text
    assert re.search(r'\| LightGCN \| 2 \| [0-9.]+ ± [0-9.]+ \[[0-9.]+, ', text)
    assert '| 0.0426† | 0.0208† |' in text
    assert 'Features: **text** only.' in text
    assert '- `grcn`, seed 1: <b> boom' in text
    assert 'Against SASRec bce, the best on validation N@10' in text
    assert 'Against LightGCN, the chosen baseline' in text
    assert (
        text.count('| vbpr | 3 trials of 5 min | 1 complete, 2 pruned | 0.0321 |') == 1
    )
    assert 'No slices' in text
    assert '`hellm pretrain lightgcn train.seed=2`' in text


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
    ):
        for model in ('LightGCN', 'SASRec bce', 'HeLLMPre'):
            assert f'>{model}<' in plots[name], (name, model)
    assert plots['validation N@10 against epoch'].count('class="curve') == 8
    assert plots['metrics against data.knn, N@10'].count('class="dot chosen"') == 2
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
    assert '## Beauty, table1' in text
    assert '## Beauty, table3' in text
    assert main([str(other), '--out', str(tmp_path / 'out'), *quick]) == 0
    assert (tmp_path / 'out' / 'RESULTS.html').is_file()
    assert not (other / 'RESULTS.md').exists()


def test_report_of_validation_alone(tmp_path: Path) -> None:
    for name in ('lightgcn', 'sasrec'):
        content = result(name, ranks(300, 1, 1), test={}, ranks={})
        write(tmp_path / 'levers', content)
    main([str(tmp_path / 'levers')])
    text = (tmp_path / 'levers' / 'RESULTS.md').read_text()
    assert 'its protocols are none, for validation alone was read' in text
    assert '### Test' not in text
    found = Page((tmp_path / 'levers' / 'RESULTS.html').read_text())
    assert 'Learning curves' in ' '.join(found.words)


def test_report_of_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert 'needs results' in capsys.readouterr().err


def test_unknown_baseline_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), '--baseline', 'lightgnc']) == 2
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
