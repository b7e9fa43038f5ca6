import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.datasets.item_text import check_template, clean, fill

NAMES = ('title', 'brand')


@pytest.mark.parametrize(
    ('raw', 'plain'),
    [
        ('a\n b\t\r\n c ', 'a b c'),
        ('<p>One<br/>two</p>', 'One two'),
        ('Salt &amp; pepper &lt;b&gt;hot&lt;/b&gt;', 'Salt & pepper hot'),
        ('2 < 3 > 1', '2 < 3 > 1'),
        ('x<script type="a">var y = "<b>";</script>z', 'x z'),
        ('a<!-- <b>no</b> -->b', 'a b'),
        ('\x00\u200bK\u00f6ln\ud800', 'K\u00f6ln'),
        ('a <b>b</b> <script>let x', 'a b'),
        ('a <!-- b <b>c</b>', 'a'),
        ('', ''),
    ],
)
def test_clean(raw, plain):
    assert clean(raw) == plain


@pytest.mark.parametrize('piece', ['<script ', '<!--', '<a', '<script></scrip', '&lt;'])
def test_clean_in_linear_time(piece):
    start = time.process_time()
    clean(piece * 10_000)
    assert time.process_time() - start < 0.5


@given(st.text())
def test_clean_gives_a_printable_line(text):
    plain = clean(text)
    assert plain == plain.strip()
    assert not plain or plain.isprintable()
    plain.encode('utf-8')


def test_fill():
    template = '{title}. {brand}'
    check_template(template, NAMES)
    assert fill(template, {'title': 'Nail {0}', 'brand': 'OPI'}) == 'Nail {0}. OPI'
    assert fill('{title} {brand}', {'title': '', 'brand': 'OPI'}) == 'OPI'
    assert fill(template, {'title': '', 'brand': ''}) == ''
    assert fill('{a.b}: {{{c}}}', {'a.b': 'x', 'c': 'y'}) == 'x: {y}'


@pytest.mark.parametrize(
    'template',
    ['{titel}', '{title.__class__}', '{title[0]}', '{title!r}', '{title:>9}', '{}'],
)
def test_only_plain_names(template):
    with pytest.raises(ValueError, match=r"'template' may name title, brand.*title"):
        check_template(template, NAMES)


@pytest.mark.parametrize('template', ['{title', 'title', ''])
def test_template_without_names(template):
    with pytest.raises(ValueError, match="'template' needs"):
        check_template(template, NAMES)
