from __future__ import annotations

from pathlib import Path

import pytest

from hellm_pyg.preparation.columns import Columns, settle_columns

ROLES = ('user', 'item', 'time', 'rating', 'item_id', 'title', 'text')


def settle(
    folder: Path,
    header: str,
    items: str | None = None,
    need_rating: bool = False,
    **given: str,
) -> Columns:
    path = folder / 'orders.csv'
    path.write_text(f'{header}\n' + ','.join('1' * len(header.split(','))) + '\n')
    catalogue = None
    if items is not None:
        catalogue = folder / 'items.csv'
        catalogue.write_text(f'{items}\n' + ','.join('1' * len(items.split(','))))
    roles = {role: given.get(role) for role in ROLES}
    return settle_columns(path, catalogue, roles, need_rating)


def test_clear_columns_are_guessed_and_said(tmp_path: Path) -> None:
    columns = settle(
        tmp_path, 'Customer ID,SKU,ordered_at,stars', 'SKU,product_name,brand'
    )
    assert columns == Columns(
        user='Customer ID',
        item='SKU',
        time='ordered_at',
        rating=None,
        item_id='SKU',
        title='product_name',
        text='{product_name}',
        notes=(
            "'orders.csv': column 'Customer ID' is read as the users",
            "'orders.csv': column 'SKU' is read as the items",
            "'orders.csv': column 'ordered_at' is read as the times",
            "'items.csv': column 'SKU' is read as the items' ids",
            "'items.csv': column 'product_name' is read as the titles",
            "texts are made of '{product_name}'",
        ),
    )


def test_given_columns_are_taken(tmp_path: Path) -> None:
    columns = settle(
        tmp_path,
        'a,b,c,date',
        'id,x,name',
        user='a',
        item='b',
        time='c',
        item_id='x',
        title='name',
        text='{name}: {x}',
    )
    assert (columns.user, columns.item, columns.time) == ('a', 'b', 'c')
    assert (columns.item_id, columns.title) == ('x', 'name')
    assert columns.text == '{name}: {x}'
    assert columns.notes == ()


def test_ratings_are_looked_for_on_demand(tmp_path: Path) -> None:
    assert settle(tmp_path, 'user,item,stars', need_rating=True).rating == 'stars'
    with pytest.raises(ValueError, match="'rating' needs the column of the ratings"):
        settle(tmp_path, 'user,item,much', need_rating=True)


@pytest.mark.parametrize(
    ('column', 'text'),
    [
        ('product.name', '{product.name}'),
        ('a[0]', '{a[0]}'),
        ('title:token', '{title}'),
        ('who!r', '{title}'),
        ('{', '{title}'),
    ],
)
def test_titles_whose_names_have_signs_of_a_format(
    tmp_path: Path, column: str, text: str
) -> None:
    columns = settle(tmp_path, 'user,item', f'item,{column}', title=column)
    assert (columns.title, columns.text) == (column, text)


def test_nothing_may_be_chosen(tmp_path: Path) -> None:
    columns = settle(
        tmp_path, 'user,item,date', 'item,title', time='', title='', text=''
    )
    assert (columns.time, columns.title, columns.text) == (None, None, '')
    assert columns.notes[0] == "'orders.csv': the order of the rows counts"


def test_without_times_the_order_counts(tmp_path: Path) -> None:
    columns = settle(tmp_path, 'user,item')
    assert columns.time is None
    assert columns.notes == ("'orders.csv': the order of the rows counts",)
    assert settle(tmp_path, 'user,item,watch_time', time='').time is None


def test_sequence_text_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / 'log.txt'
    path.write_text('1 2 3\n')
    columns = settle_columns(path, None, dict.fromkeys(ROLES))
    assert (columns.user, columns.item, columns.time, columns.notes) == (
        None, None, None, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ('header', 'items', 'given', 'message'),
    [
        ('who,what', None, {}, r"'user' needs .*'.*orders\.csv'.*'who', 'what'"),
        ('client,buyer,item', None, {}, r"'user' .*could be 'client' or 'buyer' \(its"),
        ('user,thing', None, {}, r"'item' needs .*'user', 'thing'"),
        ('user,item,date,created_at', None, {}, "'time' .*'date' or 'created_at'"),
        ('user,item,shipDate,qty', None, {}, "'time' .*may be 'shipDate', or '' if"),
        ('user,item', 'no,name', {}, r"'item_id' needs .*items\.csv'.*'no', 'name'"),
        ('user,item', 'item,name,Title', {}, "'title' .*'name' or 'Title'"),
        ('user,item', 'item,name', {'text': '{nam}'}, "^'text' may name .*'nam'"),
        ('user,item', None, {'text': '{name}'}, "'text' reads .*as 'items'"),
        ('user,item', None, {'title': 'name'}, "'title' reads .*as 'items'"),
        ('user,item,stars', None, {'rating': 'stars'}, "'rating' is read .*'stars'"),
        ('user,item', None, {'user': ''}, "'user' needs the column .*got ''"),
        ('user,item', 'item,name', {'item_id': ''}, "'item_id' needs .*got ''"),
    ],
)
def test_doubts_are_errors_that_list_the_columns(
    tmp_path: Path,
    header: str,
    items: str | None,
    given: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        settle(tmp_path, header, items, False, **given)
