"""Features of items from frozen encoders, as transforms."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from tqdm import tqdm

from hellm_pyg.checkpoint import tensor_hash
from hellm_pyg.datasets.tables import require_column
from hellm_pyg.llm.feature_cache import cache_folder, folder_hashes
from hellm_pyg.llm.image_encoder import ImageEncoder
from hellm_pyg.llm.image_folder import checked_folder, find_images, image_paths
from hellm_pyg.llm.image_rows import encode_images
from hellm_pyg.llm.item_texts import item_texts, paper_template
from hellm_pyg.llm.text_encoder import Pooling, TextEncoder
from hellm_pyg.llm.text_rows import encode_item_texts
from hellm_pyg.precision import Precision

# Parameters of the transforms that do not decide what is encoded.
VOLATILE = {'batch_size', 'device', 'cache', 'progress'}


def encode_texts(
    texts: Sequence[str],
    encoder: str = 'minilm',
    batch_size: int = 64,
    max_length: int = 64,
    progress: bool = False,
) -> Tensor:
    r"""Encodes texts as the normalised mean of an encoder's last hidden states.

    .. math::
        \mathbf{x} = \frac{\bar{\mathbf{h}}}{\| \bar{\mathbf{h}} \|_2},
        \qquad \bar{\mathbf{h}} = \frac{1}{T} \sum_{t=1}^{T} \mathbf{h}_t

    as in `"Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks"
    <https://arxiv.org/abs/1908.10084>`_, in fp32 and without a cache.
    :class:`TextFeatures` is the transform.

    Args:
        texts: One text an item.
        encoder: ``'minilm'``, hub name or folder of the encoder.
        batch_size: Texts to a batch.
        max_length: Texts are cut to so many tokens.
        progress: Show a progress bar.

    Returns:
        Unit-length features of shape :math:`[N, H]`, fp32. Rows of empty
        texts are NaN: a missing modality.

    Raises:
        ValueError: If ``texts`` holds no text.
    """
    present = [row for row, text in enumerate(texts) if text.strip()]
    if not present:
        raise ValueError(f"'texts' needs at least one text (got {len(texts)} blanks)")
    model = TextEncoder(encoder, 'mean', True, max_length, batch_size, 'fp32')
    with tqdm(
        desc='Encoding texts', total=len(present), disable=None if progress else True
    ) as bar:
        x = model.encode([texts[row] for row in present], bar.update)
    out = torch.full((len(texts), x.size(1)), torch.nan)
    out[present] = x
    return out


@functional_transform('text_features')
class TextFeatures(BaseTransform):
    r"""Encodes the items' texts (functional name: :obj:`text_features`).

    The text of an item is a template filled with its columns (``title`` and those of
    ``table``), cleaned of HTML. Writes ``x_<modality>`` of shape :math:`[I, F]`,
    with rows of NaN for items without text, and adds the card (template, encoder,
    hash of its weights, counts) to ``data.feature_cards``; ``data.fingerprint``
    changes with them.

    What is encoded is kept, named by the hash of the texts, of the weights and of the
    settings, and written shard by shard: a call that was stopped goes on, and
    encoding the same again is reading. Nothing removes what is not used any more.

    Args:
        encoder: Preset, hub name or folder of a
            :class:`~hellm_pyg.llm.text_encoder.TextEncoder`: ``'minilm'`` comes with
            a package, ``'bert'`` is that of `HeLLM <https://arxiv.org/abs/2504.10541>`_.
        template: Such as ``'{title}. {brand}'``; title, brand, category and
            description, as far as items have them, if :obj:`None`.
        modality: Name of the modality.
        pooling: ``'cls'``, ``'mean'`` or ``'projection'``; the preset's if
            :obj:`None`.
        normalize: Whether rows have unit length; the preset's if :obj:`None`.
        max_length: Texts are cut to so many tokens; the preset's if :obj:`None`.
        batch_size: Texts to a batch.
        precision: ``'fp32'``, ``'bf16'``, or ``'auto'``: bf16 on devices that are
            built for it.
        device: Device; an accelerator if :obj:`None` and there is one.
        cache: Folder of what is kept; ``hellm_pyg/features`` in the user's cache if
            :obj:`None`.
        progress: Whether to show a progress bar (in a terminal).
    """

    def __init__(
        self,
        encoder: str = 'minilm',
        template: str | None = None,
        modality: str = 'text',
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        precision: Precision = 'auto',
        device: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.encoder = encoder
        self.template = template
        self.modality = modality
        self.pooling = pooling
        self.normalize = normalize
        self.max_length = max_length
        self.batch_size = batch_size
        self.precision = precision
        self.device = device
        self.cache = cache
        self.progress = progress

    def forward(self, data: HeteroData) -> HeteroData:
        """Encodes the texts.

        Raises:
            ValueError: If the template names no column, all texts are empty, or the
                encoder cannot be loaded or used so.
        """
        x, card = self.encode(_columns(data))
        return _with_features(data, self.modality, x, card)

    def encode(
        self, columns: Mapping[str, Sequence[Any]]
    ) -> tuple[Tensor, dict[str, Any]]:
        r"""Encodes the columns of a catalogue.

        Args:
            columns: Name to values, each of length :math:`I`.

        Returns:
            float32 of shape :math:`[I, F]` and the card.

        Raises:
            ValueError: As of :meth:`forward`.
        """
        template = self.template or paper_template(list(columns))
        texts = item_texts(columns, template)
        encoder = TextEncoder(
            self.encoder,
            self.pooling,
            self.normalize,
            self.max_length,
            self.batch_size,
            self.precision,
            self.device,
        )
        x, card = encode_item_texts(
            texts, encoder, cache_folder(self.cache), self.progress
        )
        return x, {'template': template, **card}

    def cache_content(self) -> dict[str, Any]:
        """What the result depends on beside the data, for the key of a cache."""
        return _decisive(self)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.encoder!r}, template={self.template!r})'
        )


@functional_transform('image_features')
class ImageFeatures(BaseTransform):
    r"""Encodes the items' images (functional name: :obj:`image_features`).

    Writes ``x_<modality>`` of shape :math:`[I, F]`, with rows of NaN for items whose
    image is missing, damaged, of another kind or too large; the card in
    ``data.feature_cards`` counts them by reason. All else is as of
    :class:`TextFeatures`; equal files are encoded once.

    Args:
        folder: Folder of the images; nothing outside of it is read.
        encoder: Preset, hub name or folder of an
            :class:`~hellm_pyg.llm.image_encoder.ImageEncoder`: ``'clip'`` is
            CLIP ViT-B/32 as in `HeLLM <https://arxiv.org/abs/2504.10541>`_.
        column: Column of the file names in ``table``. If :obj:`None`, ``'image'``
            where there is such a column; otherwise files are named by the items'
            ids, ``SKU-7.jpg``.
        modality: Name of the modality.
        pooling: ``'projection'``, ``'cls'`` or ``'mean'``; the first of them that
            the encoder has if :obj:`None`.
        batch_size: Images to a batch.
        precision: ``'fp32'``, ``'bf16'``, or ``'auto'``: bf16 on devices that are
            built for it.
        device: Device; an accelerator if :obj:`None` and there is one.
        cache: Folder of what is kept; ``hellm_pyg/features`` in the user's cache if
            :obj:`None`.
        progress: Whether to show progress bars (in a terminal).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: str = 'clip',
        column: str | None = None,
        modality: str = 'image',
        pooling: Pooling | None = None,
        batch_size: int = 32,
        precision: Precision = 'auto',
        device: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.column = column
        self.modality = modality
        self.pooling = pooling
        self.batch_size = batch_size
        self.precision = precision
        self.device = device
        self.cache = cache
        self.progress = progress

    def forward(self, data: HeteroData) -> HeteroData:
        """Encodes the images.

        Raises:
            ValueError: If the folder or the column is not there, no image can be
                read, or the encoder cannot be loaded or used so.
        """
        x, card = self.encode(_columns(data), data['item'].get('id'))
        return _with_features(data, self.modality, x, card)

    def encode(
        self, columns: Mapping[str, Sequence[Any]], ids: Sequence[Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        r"""Encodes the images that a catalogue names.

        Args:
            columns: Name to values, each of length :math:`I`.
            ids: Ids of the items, of length :math:`I`.

        Returns:
            float32 of shape :math:`[I, F]` and the card.

        Raises:
            ValueError: As of :meth:`forward`.
        """
        folder = checked_folder(self.folder)
        column = self.column or ('image' if 'image' in columns else None)
        if column is not None:
            require_column(column, list(columns), Path('items'), 'column')
            names = columns[column]
        elif ids is not None:
            names = find_images(folder, ids)
        else:
            raise ValueError(
                "'column' needs to name the column of the file names, since the data "
                f'hold no ids of the items (got {self.column!r})'
            )
        paths = image_paths(names, folder)
        encoder = ImageEncoder(
            self.encoder, self.pooling, self.batch_size, self.precision, self.device
        )
        return encode_images(paths, encoder, cache_folder(self.cache), self.progress)

    def cache_content(self) -> dict[str, Any]:
        """What the result depends on beside the data: images and encoder, as files."""
        return _decisive(self) | {'folder': folder_hashes(checked_folder(self.folder))}

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}('{self.folder}', {self.encoder!r})"


def _decisive(transform: TextFeatures | ImageFeatures) -> dict[str, Any]:
    kept = {k: v for k, v in vars(transform).items() if k not in VOLATILE}
    encoder = Path(transform.encoder)
    return kept | ({'encoder': folder_hashes(encoder)} if encoder.is_dir() else {})


def _columns(data: HeteroData) -> dict[str, Sequence[Any]]:
    title = data['item'].get('title')
    own = {} if title is None else {'title': title}
    return own | (data['item'].get('table') or {})


def _with_features(
    data: HeteroData, modality: str, x: Tensor, card: dict[str, Any]
) -> HeteroData:
    num_items = data['item'].num_nodes
    if x.size(0) != num_items:
        raise ValueError(
            f"'data' needs columns with a value for each of its {num_items} items (got "
            f'{x.size(0)})'
        )
    data['item'][f'x_{modality}'] = x
    data.feature_cards = {**data.get('feature_cards', {}), modality: card}
    if 'fingerprint' in data:
        made_of = data.fingerprint + tensor_hash({f'x_{modality}': x})
        data.fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
    return data
