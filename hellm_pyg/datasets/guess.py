"""Which column is which, where the names leave no doubt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Role to names, without case and separators. The first one wins over the others.
ROLES = {
    'user': (
        'user_id user uid customer_id customer client_id client reviewer_id '
        'visitor_id visitor account_id account member_id member buyer_id buyer'
    ),
    'item': (
        'item_id item iid product_id product sku sku_id article_id article asin '
        'parent_asin isbn movie_id book_id goods_id'
    ),
    'time': (
        'time timestamp date datetime ts unix_review_time ordered_at order_date '
        'order_time purchased_at purchase_date purchase_time bought_at created_at '
        'event_time event_date invoice_date transaction_date transaction_time '
        'review_date review_time rating_date sold_at'
    ),
    'rating': 'rating ratings stars score overall',
}
ITEM_ROLES = {
    'item_id': f'{ROLES["item"]} id',
    'title': 'title name product_name item_name product_title item_title',
}
TIME_ENDINGS = ('date', 'time', 'timestamp')


def guess_columns(names: Sequence[str]) -> dict[str, str]:
    """Columns of users, items, times and ratings by their names.

    Args:
        names: The columns of a table of interactions.

    Returns:
        Role (``'user'``, ``'item'``, ``'time'``, ``'rating'``) to column, for the
        roles that one column alone fits, or whose usual name is there.
    """
    return _guess(names, ROLES)


def guess_item_columns(names: Sequence[str], item: str | None = None) -> dict[str, str]:
    """Columns of ids and titles of an item table by their names.

    Args:
        names: The columns of the item table.
        item: Id column of the interactions, which a table of items often shares.

    Returns:
        ``'item_id'`` and ``'title'`` to column, as far as there is no doubt.
    """
    guessed = _guess(names, ITEM_ROLES)
    if item is not None and item in names:
        guessed['item_id'] = item
    return guessed


def fitting(names: Sequence[str], role: str) -> list[str]:
    """All columns whose names fit a role, be there one, none or several.

    Args:
        names: The columns of a table.
        role: A role of :func:`guess_columns` or :func:`guess_item_columns`.
    """
    known = _plain({**ROLES, **ITEM_ROLES}[role].split())
    return [name for name in names if _plain([name]) <= known]


def perhaps_times(names: Sequence[str]) -> list[str]:
    """Columns that may well hold times, as ``shipping_date``, or a ``watch_time``."""
    return [
        name for name in names if any(p.endswith(TIME_ENDINGS) for p in _plain([name]))
    ]


def _guess(names: Sequence[str], roles: dict[str, str]) -> dict[str, str]:
    guessed = {}
    for role, text in roles.items():
        fits = fitting(names, role)
        usual = [name for name in fits if name == text.split()[0]]
        if usual or len(fits) == 1:
            guessed[role] = (usual or fits)[0]
    return guessed


def _plain(names: Iterable[str]) -> set[str]:
    return {re.sub(r'[^a-z0-9]', '', name.lower()) for name in names}
