"""Raw files as the three releases have them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

# User, product, time in seconds; the order of the files is by product.
REVIEWS = [
    ('A3', 'B001', 300),
    ('A1', 'B001', 100),
    ('A2', 'B001', 100),
    ('A1', 'B002', 100),
    ('A3', 'B002', 100),
    ('A2', 'B003', 50),
    ('A1', 'B003', 50),
    ('A3', 'B003', 200),
]
# In ids: users A1 .. A3 are 0 .. 2, products B001 .. B003 are 0 .. 2; A1 has
# reviewed B001 and B002 in the same second, and keeps the order of the file.
EDGES = [
    (0, 2, 50),
    (0, 0, 100),
    (0, 1, 100),
    (1, 2, 50),
    (1, 0, 100),
    (2, 1, 100),
    (2, 2, 200),
    (2, 0, 300),
]
IMAGE = 'http://images.example/I/51.jpg'


def review(release: str, user: str, item: str, time: int) -> dict:
    if release == '2023':
        return {
            'rating': 5.0,
            'title': 'Nice',
            'text': 'Really \u00fc <br />',
            'images': [],
            'asin': f'{item}-blue',
            'parent_asin': item,
            'user_id': user,
            'timestamp': time * 1000 + 7,
            'helpful_vote': 0,
            'verified_purchase': True,
        }
    record = {
        'reviewerID': user,
        'asin': item,
        'reviewerName': 'Andrea "A"',
        'reviewText': 'Really \u00fc',
        'overall': 1.0,
        'summary': 'Meh',
        'unixReviewTime': time,
        'reviewTime': '01 30, 2014',
    }
    return record | ({'helpful': [3, 4]} if release == '2014' else {'verified': True})


def product(release: str, item: str, image: str = IMAGE) -> dict:
    title, text = f"Women's <b>brush</b> {item}", 'Soft &amp;\nlight'
    if release == '2014':
        return {
            'asin': item,
            'categories': [['Beauty', 'Tools & Accessories'], ['Gifts']],
            'description': text,
            'title': title,
            'price': 9.99,
            'salesRank': {'Beauty': 402875},
            'imUrl': image,
            'brand': 'Eco',
            'related': {'also_bought': ['B009', 'B008']},
        }
    if release == '2018':
        return {
            'category': ['Beauty', 'Tools & Accessories'],
            'tech1': '',
            'description': [text, ''],
            'fit': None,
            'title': title,
            'also_buy': [],
            'imageURL': ['http://images.example/tiny.jpg'],
            'imageURLHighRes': [image],
            'brand': 'Eco',
            'rank': ['>#1'],
            'price': '$9.99',
            'asin': item,
        }
    return {
        'main_category': 'All Beauty',
        'title': title,
        'average_rating': 4.8,
        'features': [],
        'description': [text],
        'price': None,
        'images': [
            {'thumb': 't', 'large': 'http://x/2.jpg', 'variant': 'PT01'},
            {'thumb': 't', 'large': image, 'variant': 'MAIN', 'hi_res': None},
        ],
        'store': 'Eco Shop',
        'categories': ['Beauty', 'Tools & Accessories'],
        'details': {'Brand': 'Eco'},
        'parent_asin': item,
    }


def product_line(release: str, record: dict) -> str:
    return repr(record) if release == '2014' else json.dumps(record)


def file_names(release: str, name: str) -> tuple[str, str]:
    return {
        '2014': (f'reviews_{name}_5.json.gz', f'meta_{name}.json.gz'),
        '2018': (f'{name}_5.json.gz', f'meta_{name}.json.gz'),
        '2023': (f'{name}.jsonl.gz', f'meta_{name}.jsonl.gz'),
    }[release]


def raw_files(
    release: str, reviews=REVIEWS, items=('B002', 'B000', 'B001'), image: str = IMAGE
) -> tuple[bytes, bytes]:
    """Content of both files, before compression; B003 has no metadata."""
    first = [json.dumps(review(release, *row)) for row in reviews]
    second = [product_line(release, product(release, item, image)) for item in items]
    return tuple('\n'.join([*lines, '']).encode() for lines in (first, second))


def write_raw(root: Path, release: str, name: str, contents) -> None:
    folder = root / 'raw' / release
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in zip(file_names(release, name), contents, strict=True):
        (folder / file).write_bytes(gzip.compress(content, mtime=0))
