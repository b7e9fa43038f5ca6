"""A graph and its ids in a folder that is named by what it was made of."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData, InMemoryDataset

from hellm_pyg.checkpoint import load_json
from hellm_pyg.datasets.cache import whole_folder
from hellm_pyg.datasets.ids import IdMap


class CachedGraph(InMemoryDataset):
    """A data set of one graph, whose processed folder is complete or absent.

    Beside the graph and the ids the folder holds a report of how they were made.

    The folder's name is the content key of the input and the arguments, so that
    other input gives another folder. :meth:`load_graph` is for the end of a
    constructor.
    """

    ids: IdMap
    report: dict[str, Any]

    def content_key(self) -> str:
        """Hash of all that the processed data depend on."""
        raise NotImplementedError

    @cached_property
    def _folder(self) -> Path:
        return Path(self.root) / 'processed' / self.content_key()

    @property
    def processed_dir(self) -> str:
        """The folder named by the contents of the files and the arguments."""
        return str(self._folder)

    @property
    def processed_file_names(self) -> list[str]:
        """The graph, the id map and the report."""
        return ['data.pt', 'ids.json', 'report.json']

    def _process(self) -> None:
        final, names = self._folder, self.processed_file_names
        complete = all((final / name).exists() for name in names)
        if complete and not self.force_reload:
            return
        with whole_folder(final, names) as self._folder:
            super()._process()
            if self.force_reload:
                shutil.rmtree(final, ignore_errors=True)
        self._folder = final

    def load_graph(self) -> None:
        """Loads what :meth:`process` has saved.

        Raises:
            ValueError: If a file is damaged.
        """
        with self._reading(), warnings.catch_warnings():
            # Of torch, where it reads the graph as CSR.
            warnings.filterwarnings('ignore', '.*Sparse CSR tensor support')
            self.load(self.processed_paths[0], HeteroData)
            self.ids = IdMap.load(self.processed_paths[1])
            self.report = load_json(self.processed_paths[2], dict)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Says how a folder that cannot be read is made anew."""
        try:
            yield
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(
                f"'{self.processed_dir}' cannot be read ({error!r}): remove the folder "
                f"(or give 'force_reload=True'), and it is made anew"
            ) from error
