import pytest

from hellm_pyg.datasets.guess import guess_columns, guess_item_columns


@pytest.mark.parametrize(
    ('names', 'guessed'),
    [
        (
            ['Customer ID', 'SKU', 'ordered_at', 'qty'],
            {'user': 'Customer ID', 'item': 'SKU', 'time': 'ordered_at'},
        ),
        (
            ['reviewerID', 'asin', 'overall', 'unixReviewTime'],
            {
                'user': 'reviewerID',
                'item': 'asin',
                'rating': 'overall',
                'time': 'unixReviewTime',
            },
        ),
        # The usual name wins; among others there is doubt.
        (['user_id', 'customer', 'item_id'], {'user': 'user_id', 'item': 'item_id'}),
        (['customer', 'buyer', 'sku'], {'item': 'sku'}),
        (
            ['CustomerID', 'StockCode', 'InvoiceDate'],
            {'user': 'CustomerID', 'time': 'InvoiceDate'},
        ),
        (['date', 'created_at'], {}),
        (['a', 'b'], {}),
    ],
)
def test_columns_without_doubt(names, guessed):
    assert guess_columns(names) == guessed


def test_item_columns():
    assert guess_item_columns(['id', 'name']) == {'item_id': 'id', 'title': 'name'}
    assert guess_item_columns(['id', 'sku', 'title']) == {'title': 'title'}
    assert guess_item_columns(['id', 'sku', 'title'], 'sku') == {
        'item_id': 'sku',
        'title': 'title',
    }
    assert guess_item_columns(['item_id', 'x'], 'sku') == {'item_id': 'item_id'}
