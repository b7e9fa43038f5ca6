"""The releases of the Amazon reviews: addresses, file names and fields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """Where a release lies and how its files name things.

    Args:
        reviews: File name of the reviews, with ``{name}`` for the category.
        products: File name of the products, likewise.
        folders: Addresses of the folders of reviews and of products, by mirror.
        user: Field of the user.
        item: Field of the product.
        time: Field of the time.
        unit: Unit of the time, ``'s'`` or ``'ms'``.
        literals: Whether products are Python literals rather than JSON.
    """

    reviews: str
    products: str
    folders: tuple[tuple[str, str], ...]
    user: str = 'reviewerID'
    item: str = 'asin'
    time: str = 'unixReviewTime'
    unit: str = 's'
    literals: bool = False


SNAP = 'snap.stanford.edu/data/amazon/productGraph/categoryFiles'
UCSD = (
    'https://mcauleylab.ucsd.edu/public_datasets/data',
    'https://datarepo.eng.ucsd.edu/mcauley_group/data',
)
RELEASES = {
    '2014': Release(
        'reviews_{name}_5.json.gz',
        'meta_{name}.json.gz',
        ((f'https://{SNAP}', f'https://{SNAP}'), (f'http://{SNAP}', f'http://{SNAP}')),
        literals=True,
    ),
    '2018': Release(
        '{name}_5.json.gz',
        'meta_{name}.json.gz',
        tuple(
            (f'{base}/amazon_v2/categoryFilesSmall', f'{base}/amazon_v2/metaFiles2')
            for base in (*UCSD, 'https://jmcauley.ucsd.edu/data')
        ),
    ),
    '2023': Release(
        '{name}.jsonl.gz',
        'meta_{name}.jsonl.gz',
        tuple(
            (
                f'{base}/amazon_2023/raw/review_categories',
                f'{base}/amazon_2023/raw/meta_categories',
            )
            for base in UCSD
        ),
        user='user_id',
        item='parent_asin',
        time='timestamp',
        unit='ms',
    ),
}
