"""Named item embeddings that a language-model recommender reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hellm_pyg.nn.parameter_names import check_parameter_names


class ItemTables(nn.Module):
    r"""Item embeddings by name, frozen or trained.

    Rows with a NaN are items without that embedding; they are read as zeros.

    Tables come from different models and differ in size: BPR's vectors may be six
    times as long as those of a text encoder. What is concatenated is then mostly the
    largest one, beside a bias that is larger still. ``scale='rms'`` reads a table as

    .. math::
        \mathbf{e}_i / \sqrt{\operatorname{mean}_{j, c} \, e_{jc}^2}

    with the mean over the rows that are not missing, taken once, at the start.

    Args:
        tables (dict): Name to embeddings, each :math:`[I, d]`.
        train (collection of str): Names of the tables that are trained further;
            the others are saved as they are. (default: :obj:`()`)
        scale (str): ``'none'`` reads the tables as they are, ``'rms'`` with a root
            mean square of one. (default: :obj:`"none"`)

    Raises:
        ValueError: If the tables do not fit together or hold an infinity, or
            ``scale`` is unknown.
    """

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        train: Collection[str] = (),
        scale: Literal['none', 'rms'] = 'none',
    ) -> None:
        super().__init__()
        sizes = {name: list(table.shape) for name, table in tables.items()}
        if not sizes or any(len(size) != 2 for size in sizes.values()):
            raise ValueError(
                f"'item_embeddings' needs at least one table of shape [I, d] "
                f'(got {sizes})'
            )
        if len({size[0] for size in sizes.values()}) > 1:
            raise ValueError(
                f"'item_embeddings' needs a row for the same items in every table "
                f'(got {sizes})'
            )
        for name in train:
            if name not in sizes:
                raise ValueError(
                    f"'train_embeddings' names a table that is not there (got "
                    f'{name!r}; there are {sorted(sizes)})'
                )
        if scale not in ('none', 'rms'):
            raise ValueError(
                f"'table_scale' needs to be 'none' or 'rms' (got {scale!r})"
            )
        self.scale = scale
        self.channels = {name: size[1] for name, size in sizes.items()}
        self.num_items = next(iter(sizes.values()))[0]
        check_parameter_names('item_embeddings', tables)
        self.weights, self.factors = nn.ParameterDict(), nn.ParameterDict()
        for name, table in tables.items():
            table = table.detach().float()
            missing = table.isnan().any(dim=1, keepdim=True)
            table = table.masked_fill(missing, 0.0)
            if not table.is_meta and table.isinf().any():
                raise ValueError(
                    f"'item_embeddings' needs finite values (got an infinity in "
                    f'{name!r})'
                )
            self.weights[name] = nn.Parameter(table, requires_grad=name in train)
            if scale == 'rms':
                square = table.double().square().sum()  # overflows in fp32
                square = square / (~missing).sum() / table.size(1)
                factor = square.rsqrt().nan_to_num(1.0, posinf=1.0)  # nothing but 0
                factor = factor.float()
                self.factors[name] = nn.Parameter(factor, requires_grad=False)

    @property
    def trained(self) -> list[str]:
        """Names of the tables that are trained on."""
        return [name for name in self.channels if self.weights[name].requires_grad]

    def width(self, names: Sequence[str]) -> int:
        """Returns the width of the concatenation of some tables."""
        return sum(self.channels[name] for name in names)

    def forward(self, names: Sequence[str], index: Tensor | None = None) -> Tensor:
        """Returns concatenated rows.

        Args:
            names: Tables to concatenate.
            index: Items, :math:`[N]`; :obj:`None` for the whole catalogue.
        """
        rows = [self.weights[name] for name in names]
        if index is not None:
            rows = [row[index] for row in rows]
        if self.scale == 'rms':
            pairs = zip(names, rows, strict=True)
            rows = [row * self.factors[name] for name, row in pairs]
        return torch.cat(rows, dim=-1) if len(rows) > 1 else rows[0]
