import pytest

from hellm_pyg.datasets.amazon_tables import TEMPLATE
from hellm_pyg.llm.item_texts import item_texts, paper_template

COLUMNS = {
    'title': ['<b>Red</b> &amp; new', '', None],
    'brand': ['Acme', '', float('nan')],
    'category': ['Beauty > Hair Care', '', []],
    'description': ['Line<br/>\nnext\u0000', ' <p> </p> ', ''],
    'price': [3, 4, None],
    'tags': [['a', None, '<i>b</i>'], [], None],
    'paths': [[['Beauty', 'Hair'], ['Sale']], [], None],
}


def test_the_template_of_the_paper():
    assert paper_template(list(COLUMNS)) == TEMPLATE
    assert item_texts(COLUMNS, TEMPLATE) == [
        'Red & new Acme Beauty Hair Care Line next',
        '',
        '',
    ]
    assert paper_template(['sku', 'brand', 'title']) == '{title} {brand}'
    with pytest.raises(ValueError, match=r"'template' needs to be given.*'\{name\}'"):
        paper_template(['name', 'maker'])


def test_values_of_all_kinds():
    assert item_texts(COLUMNS, '{title}: {price}. {tags}/{paths}') == [
        'Red & new: 3. a b/Beauty Hair',
        ': 4. /',
        '',
    ]


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(ValueError, match=r"'brnad'.*did you mean \['brand'\]"):
        item_texts(COLUMNS, '{title} {brnad}')
    with pytest.raises(ValueError, match=r"'template' needs a name in braces"):
        item_texts(COLUMNS, 'title')
