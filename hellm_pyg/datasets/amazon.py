"""Amazon reviews of 2014, 2018 and 2023, from the raw files to a graph."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import HeteroData

from hellm_pyg.checkpoint import load_json, save_json
from hellm_pyg.datasets.amazon_releases import RELEASES
from hellm_pyg.datasets.amazon_reviews_format import LineReport, read_products
from hellm_pyg.datasets.amazon_tables import (
    FIELDS,
    TEMPLATE,
    check_found,
    item_columns,
    read_log,
)
from hellm_pyg.datasets.cache import content_key
from hellm_pyg.datasets.cached_graph import CachedGraph
from hellm_pyg.datasets.download import fetch
from hellm_pyg.datasets.graph import interaction_graph
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.datasets.images import fetch_images
from hellm_pyg.datasets.item_text import check_template
from hellm_pyg.datasets.log import InteractionLog
from hellm_pyg.datasets.provenance import Provenance, describe_file

# Part of the cache's key: raised whenever the same files give other data.
FORMAT = 3
SHORT_NAMES = {'Toys': 'Toys_and_Games', 'Sports': 'Sports_and_Outdoors'}


class AmazonReviews(CachedGraph):
    r"""The reviews of a category of Amazon's products, as a graph.

    The raw files, from `"Image-based Recommendations on Styles and Substitutes"
    <https://arxiv.org/abs/1506.04757>`_ (2014), `"Justifying Recommendations using
    Distantly-Labeled Reviews and Fine-Grained Aspects"
    <https://aclanthology.org/D19-1018>`_ (2018) and `"Bridging Language and Items
    for Retrieval and Recommendation" <https://arxiv.org/abs/2403.03952>`_ (2023),
    are downloaded to :obj:`root/raw/<release>`, or taken from there, also
    decompressed. :attr:`report` counts the lines that hold no record.

    The result is that of :class:`~hellm_pyg.datasets.InteractionFiles`: all
    interactions, sorted by user, then time (equal times keep the order of the
    file); the first of a user's reviews of a product stays; users and products
    are numbered in the order of their codes; times are seconds since 1970.
    :obj:`data['item']` has :obj:`title` and, in :obj:`table`, the columns
    :obj:`brand`, :obj:`category` (levels of the first path, joined by
    :obj:`' > '`), :obj:`description`, :obj:`text` and :obj:`image_url`, empty
    where missing. With :obj:`images`, the column :obj:`image` names a file in
    :obj:`root/images`, and :obj:`data['item'].image_missing`, bool of shape
    :math:`[I]`, marks the items without one.

    .. csv-table:: Release of 2014
        :header: Name, #users, #items, #interactions

        Beauty, "22,363", "12,101", "198,502"
        Sports_and_Outdoors (Sports), "35,598", "18,357", "296,337"
        Toys_and_Games (Toys), "19,412", "11,924", "167,597"

    Args:
        root: Folder of raw files, images and the cache.
        name: The category as it is written in the names of the files.
        release: :obj:`'2014'`, :obj:`'2018'` or :obj:`'2023'`.
        base_urls: http(s) addresses of folders that hold both files, tried in
            this order; those of the publishers if :obj:`None`.
        images: Whether to fetch the products' images (needs Pillow). What a
            later attempt may bring (a busy server, a spent budget) is tried again
            by the next call, all else with :obj:`force_reload` only.
        min_count: Users and products with fewer reviews are dropped until none
            is left (k-core); 0 keeps all.
        template: The column :obj:`text`: names of title and columns in braces.
        transform: Applied at every access.
        pre_transform: Applied before saving.
        force_reload: Whether to process again.
        sha256: File name to hash in hexadecimal digits, of raw files whose hash
            is known; they are checked whether downloaded or there.

    Raises:
        ValueError: If an argument is out of range, or a file cannot be
            downloaded, is damaged or holds nothing of use.
    """

    force_reload: bool

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str = 'Beauty',
        release: str = '2014',
        base_urls: str | Sequence[str] | None = None,
        images: bool = False,
        min_count: int = 5,
        template: str = TEMPLATE,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        if release not in RELEASES:
            raise ValueError(
                f"'release' needs to be one of {', '.join(RELEASES)} (got {release!r})"
            )
        if not re.fullmatch(r'[A-Za-z0-9_]+', name):
            raise ValueError(
                f"'name' needs letters, digits and '_', as in 'Beauty' or "
                f"'Sports_and_Outdoors' (got {name!r})"
            )
        if min_count < 0:
            raise ValueError(f"'min_count' needs to be at least 0 (got {min_count})")
        check_template(template, FIELDS)
        self.release = release
        self._release = RELEASES[release]
        self.name = SHORT_NAMES.get(name, name)
        self.base_urls = [base_urls] if isinstance(base_urls, str) else base_urls
        if self.base_urls is not None and not self.base_urls:
            raise ValueError("'base_urls' needs at least one address (got none)")
        self.images = images
        self.sha256 = dict(sha256 or {})
        self._refused: dict[str, str] = {}
        self.min_count = min_count
        self.template = template
        super().__init__(
            os.fspath(root), transform, pre_transform, None, False, force_reload
        )
        self.load_graph()

    @property
    def raw_dir(self) -> str:
        """Folder of the release's files, whose names those of others may equal."""
        return os.path.join(self.root, 'raw', self.release)

    @property
    def raw_file_names(self) -> list[str]:
        """Files of the reviews and of the products."""
        names = []
        for pattern in (self._release.reviews, self._release.products):
            name = pattern.format(name=self.name)
            plain = name.removesuffix('.gz')
            names.append(plain if Path(self.raw_dir, plain).is_file() else name)
        return names

    @property
    def provenance(self) -> Provenance:
        """Where the data are from, for their card."""
        report = self.report
        reviews, products = report['files']
        notes = [
            f'{file["name"]}: {file["bad"]:,} of {file["lines"]:,} lines hold no '
            f'record, the first is line {file["first_bad"][0][0]:,} '
            f'({file["first_bad"][0][1]}).'
            for file in (reviews, products)
            if file['bad']
        ]
        absent = report['items without metadata']
        if absent:
            notes.append(f'{absent:,} items are not in {products["name"]}.')
        return Provenance(
            source=f'Amazon reviews of {self.release}: {self.name}',
            files=report['files'],
            settings={'release': self.release, 'min_count': self.min_count},
            dropped={
                f'lines of {reviews["name"]}: no record': reviews['bad'],
                **{f'reviews: {why}': n for why, n in report['dropped'].items()},
                f'lines of {products["name"]}: no record': products['bad'],
                f'lines of {products["name"]}: repeated': products['repeated'],
            },
            template=self.template,
            images=report['images']['counts'] if report['images'] else {},
            notes=notes,
        )

    @property
    def image_folder(self) -> Path:
        """Folder of the images."""
        return Path(self.root) / 'images'

    def _download(self) -> None:
        if self.sha256:  # which are compared with files that are there, too
            self.download()
        else:
            super()._download()

    def _process(self) -> None:
        """Also processes again if images may be had that are not there yet."""
        forced, path = self.force_reload, self.processed_paths[2]
        if self.images and not forced and Path(path).is_file():
            with self._reading():
                entries = {'images': {'refused': dict, 'again': bool}}
                before = load_json(path, entries)['images']
            self._refused = before['refused']
            self.force_reload = before['again']
        try:
            super()._process()
        finally:
            self.force_reload = forced

    def download(self) -> None:
        """Downloads the files that are not there, and checks known hashes."""
        self._check_hashes()
        folders = self._release.folders
        if self.base_urls is not None:
            folders = tuple((base, base) for base in self.base_urls)
        for path, bases in zip(self.raw_paths, zip(*folders, strict=True), strict=True):
            name = Path(path).name
            sha256 = self.sha256.get(name)
            if sha256 or not Path(path).exists():
                urls = [f'{base.rstrip("/")}/{name}' for base in bases]
                fetch(urls, path, sha256=sha256)

    def _check_hashes(self) -> None:
        names = self.raw_file_names
        for name, sha256 in self.sha256.items():
            if name not in names:
                raise ValueError(
                    f"'sha256' needs to name {' or '.join(names)} (got {name!r})"
                )
            if not re.fullmatch('[0-9A-Fa-f]{64}', sha256):
                raise ValueError(
                    f"'sha256' needs 64 hexadecimal digits for {name} (got {sha256!r})"
                )

    def content_key(self) -> str:
        """Hash of the raw files and the arguments."""
        arguments = {
            'format': FORMAT,
            'release': self.release,
            'name': self.name,
            'images': self.images,
            'min_count': self.min_count,
            'template': self.template,
            'pre_transform': self.pre_transform,
        }
        return content_key([Path(path) for path in self.raw_paths], arguments)

    def process(self) -> None:
        """Reads the files, and saves the graph and the report."""
        reviews, products = (Path(path) for path in self.raw_paths)
        reports = [LineReport(path.name) for path in (reviews, products)]
        log, dropped = self._filtered(read_log(reviews, self._release, reports[0]))
        codes = set(map(str, log.items))
        found = dict(read_products(products, self._release, codes, reports[1]))
        check_found(products, reports[1], len(log.items), len(found))
        titles, table = item_columns(log.items, found, self.template)
        ids = IdMap(log.users, log.items, titles)
        images = None
        if self.images:
            images = fetch_images(
                table['image_url'], self.image_folder, refused=self._refused
            )
            table['image'] = images.files
        data = interaction_graph(
            ids,
            torch.from_numpy(np.stack([log.user, log.item])),
            torch.from_numpy(log.whole_time),
            {},
            table,
            self.name,
        )
        data.time_unit = 's'
        if images is not None:
            data['item'].image_missing = images.missing
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        report = {
            'name': self.name,
            'release': self.release,
            'template': self.template,
            'min_count': self.min_count,
            'users': ids.num_users,
            'items': ids.num_items,
            'interactions': len(log),
            'dropped': dropped,
            'items without metadata': ids.num_items - len(found),
            'files': [
                describe_file(path) | dataclasses.asdict(lines)
                for path, lines in zip((reviews, products), reports, strict=True)
            ],
            'images': images
            and {
                'counts': images.counts,
                'problems': images.problems,
                'refused': images.refused,
                'again': images.again,
            },
        }
        save_json(self.processed_paths[2], report)
        ids.save(self.processed_paths[1])
        self.save([data], self.processed_paths[0])

    def _filtered(self, raw: InteractionLog) -> tuple[InteractionLog, dict[str, int]]:
        distinct = raw.chronological().first_of_pairs()
        log = distinct.core(self.min_count).compact()
        if len(log) == 0:
            raise ValueError(
                f"'min_count' leaves no interaction of '{self.raw_paths[0]}' (got "
                f'{self.min_count}, for {len(distinct)} interactions)'
            )
        return log, {
            'repeated': len(raw) - len(distinct),
            'below min_count': len(distinct) - len(log),
        }
