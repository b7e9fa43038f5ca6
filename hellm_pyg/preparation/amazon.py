"""A category of Amazon's reviews to a prepared folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from hellm_pyg.config import DataConfig
from hellm_pyg.datasets.amazon import AmazonReviews
from hellm_pyg.datasets.amazon_tables import TEMPLATE
from hellm_pyg.datasets.export import export_tables
from hellm_pyg.datasets.times import read_moment
from hellm_pyg.preparation.encoding import Encoding, encode, settings_of
from hellm_pyg.preparation.folder import (
    Prepared,
    complete,
    new_folder,
    refuse_one_date,
    split_line,
)
from hellm_pyg.transforms import HoldOutByDate


def prepare_amazon(
    out: str | os.PathLike[str],
    name: str = 'Beauty',
    release: str = '2014',
    root: str | os.PathLike[str] = 'data/amazon',
    *,
    base_urls: Sequence[str] | None = None,
    images: bool = False,
    template: str = TEMPLATE,
    encoding: Encoding | None = None,
    min_count: int = 5,
    val_from: str | int | date | None = None,
    test_from: str | int | date | None = None,
    sha256: Mapping[str, str] | None = None,
) -> Prepared:
    """Makes a category of Amazon's products a folder that recipes read.

    Downloads go on where they were stopped. The folder is that of
    :func:`~hellm_pyg.preparation.prepare_table`.

    Args:
        out: The folder: new, empty, or a prepared one, which is replaced.
        name: The category, as in the names of the files.
        release: ``'2014'``, ``'2018'`` or ``'2023'``.
        root: Folder of raw files, images and the cache.
        base_urls: Addresses of folders that hold both files, tried in this order.
        images: Whether to fetch the products' images; the same call again tries
            those that a busy server or a spent budget has left out.
        template: Text of a product, of ``title``, ``brand``, ``category`` and
            ``description``; ``''`` for no text features.
        encoding: The encoders; text and images are those of the category.
        min_count: Users and products with fewer reviews are dropped (k-core).
        val_from: Validation begins here; see ``prepare_table``.
        test_from: The test begins here.
        sha256: Raw file's name to its hash, where known.

    Raises:
        ValueError: If an argument is out of range, a file cannot be downloaded or
            is damaged, or an encoder cannot be loaded.
    """
    refuse_one_date(val_from, test_from)
    dates = read_moment(val_from), read_moment(test_from)
    if dates[0] is not None and dates[1] is not None:
        HoldOutByDate(dates[0], dates[1])  # refuses dates that are none
    encoding = dataclasses.replace(
        encoding or Encoding(), text='{text}' if template else ''
    )
    with new_folder(out) as folder:
        dataset = AmazonReviews(
            root,
            name,
            release,
            base_urls=base_urls,
            images=images,
            template=template or TEMPLATE,
            min_count=min_count,
            sha256=sha256,
        )
        paths = export_tables(dataset[0], dataset.ids, folder)
        if images:
            encoding = dataclasses.replace(
                encoding, images=dataset.image_folder, image_column='image'
            )
        files, cards = encode(folder, paths['items'], 'item_id', 'title', encoding)
        config = DataConfig(
            name=dataset.name,
            interactions=paths['interactions'].name,
            user='user_id',
            item='item_id',
            time='time',
            time_unit='s',
            items=paths['items'].name,
            features=files,
            val_from=dates[0],
            test_from=dates[1],
        )
        provenance = dataclasses.replace(
            dataset.provenance,
            template=template,
            encoders=settings_of(cards),
            split=split_line(config),
        )
        data, ids, few = complete(folder, config, provenance)
    return Prepared(Path(out), data, ids, [*provenance.notes, *few])
