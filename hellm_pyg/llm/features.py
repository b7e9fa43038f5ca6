"""Text features of items from a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer


@torch.inference_mode()
def encode_texts(
    texts: Sequence[str],
    encoder: str,
    batch_size: int = 64,
    max_length: int = 64,
    progress: bool = False,
) -> Tensor:
    r"""Encodes texts as the mean of an encoder's last hidden states.

    .. math::
        \mathbf{x} = \frac{\bar{\mathbf{h}}}{\| \bar{\mathbf{h}} \|_2},
        \qquad \bar{\mathbf{h}} = \frac{1}{T} \sum_{t=1}^{T} \mathbf{h}_t

    as in `"Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks"
    <https://arxiv.org/abs/1908.10084>`_. Batches hold texts of similar
    length; the order of the result is the order given.

    Args:
        texts: One text an item.
        encoder: Hub name or folder of the encoder.
        batch_size: Texts to a batch.
        max_length: Texts are cut to so many tokens.
        progress: Show a progress bar.

    Returns:
        Unit-length features of shape :math:`[N, H]`, fp32. Rows of empty
        texts are NaN: a missing modality.

    Raises:
        ValueError: If ``texts`` is empty.
    """
    if len(texts) == 0:
        raise ValueError("'texts' needs at least one text (got none)")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    out = torch.full((len(texts), model.config.hidden_size), float('nan'))
    order = sorted(
        (i for i, text in enumerate(texts) if text.strip()),
        key=lambda i: len(texts[i]),
    )
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc='Encoding texts', disable=not progress):
        rows = order[start : start + batch_size]
        tokens = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors='pt',
        )
        state = model(**tokens).last_hidden_state
        mask = tokens['attention_mask'].unsqueeze(-1).to(state.dtype)
        mean = (state * mask).sum(dim=1) / mask.sum(dim=1)
        out[rows] = torch.nn.functional.normalize(mean, dim=-1)
    return out
