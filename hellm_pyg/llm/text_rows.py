"""Texts of items to rows of a matrix: encoded once, kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hellm_pyg.llm.feature_cache import cached_rows
from hellm_pyg.llm.text_encoder import TextEncoder


def encode_item_texts(
    texts: Sequence[str], encoder: TextEncoder, cache: Path, progress: bool = True
) -> tuple[Tensor, dict[str, Any]]:
    r"""Encodes one text an item; equal texts are encoded once.

    Rows depend on the set of texts, not on their order, to the last bit.

    Args:
        texts: Text of each item, blank if it has none.
        encoder: The encoder.
        cache: Folder of the cache.
        progress: Whether to show a progress bar (in a terminal).

    Returns:
        float32 of shape :math:`[I, F]`, NaN where the text is blank, and the
        card: the settings and how many rows are missing.

    Raises:
        ValueError: If all texts are blank.
    """
    present = {text for text in texts if text.strip()}
    if not present:
        raise ValueError(
            f"'texts' needs at least one text (got {len(texts)} blanks): give a "
            f"template of columns that are filled, or '' for no text"
        )
    # From long to short: batches hold like lengths, and a lack of memory shows early.
    distinct = sorted(present, key=lambda text: (-len(text), text))
    x, key = cached_rows(
        cache,
        encoder.settings,
        distinct,
        lambda rows, advance: encoder.encode(distinct[rows.start : rows.stop], advance),
        'Encoding texts',
        progress,
    )
    position = {text: row for row, text in enumerate(distinct)}
    index = torch.tensor([position.get(text, -1) for text in texts])
    out = x[index]
    out[index < 0] = torch.nan
    card = encoder.settings | {
        'key': key,
        'dim': x.size(1),
        'items': len(texts),
        'distinct': len(distinct),
        'missing': int((index < 0).sum()),
    }
    return out, card
