"""What a language-model recommender holds beside its weights, bounded from above."""

from __future__ import annotations

from typing import NamedTuple

from hellm_pyg.backbone_shape import BackboneShape, lora_maps
from hellm_pyg.config import LLMConfig, TrainConfig
from hellm_pyg.precision import DTYPES, Precision, resolve_precision

# Tokens around the items at least; the default texts have 50 to 60.
PROMPT_TOKENS = 64
# Width of what a prefix pools without a map of its own: that of phase 1.
POOLED_WIDTH = 64
# Scores that live at once (see ItemHead).
CHUNK = 2**24


class _Pass(NamedTuple):
    """Rows of equal length through the language model.

    Args:
        rows: Number of rows.
        items: Items of each.
        length: Tokens of each.
        shared: Tokens of the instruction that is read once for all rows.
        slots: Slots of the prefix.
        size: Bytes of a number.
    """

    rows: int
    items: int
    length: int
    shared: int
    slots: int
    size: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def instruction(self) -> _Pass:
        """The pass of the instruction alone."""
        own = self._replace(rows=1, items=0, length=self.shared, shared=0)
        return own if self.shared else own._replace(rows=0)


def _pass(llm: LLMConfig, rows: int, max_len: int, precision: Precision) -> _Pass:
    size = DTYPES[resolve_precision(precision)].itemsize
    slots = 0 if llm.prefix is None else int(llm.prefix.get('num_tokens', 10))
    if llm.scope == 'user':
        return _Pass(rows, max_len, max_len + _prompt_tokens(llm), 0, slots, size)
    return _Pass(rows, max_len, max_len, _prompt_tokens(llm), slots, size)


def _prompt_tokens(llm: LLMConfig) -> int:
    """Three letters of ASCII a token, a byte of others: more than tokenizers take."""
    text = (llm.instruction or '') + (llm.response or '') * (llm.scope == 'user')
    ascii_letters = sum(letter.isascii() for letter in text)
    own = ascii_letters // 3 + len(text.encode()) - ascii_letters
    return max(PROMPT_TOKENS, own + 2)  # with two BOS tokens


def activation_bytes(train: TrainConfig, llm: LLMConfig, shape: BackboneShape) -> int:
    """Bounds what a training step holds, from items' tokens to read-out states.

    Every row is taken to be ``max_len`` items long, as those of the fullest batch
    are; with ``batch_tokens``, of which short rows with a prompt each can be the more
    costly use, also to be one item long, and the larger counts. Counted are the
    results that the backward pass needs: of each layer (norms, projections and their
    LoRA inputs, attention weights where a prefix needs its own attention, the
    feed-forward part), of the prefix, of the items' tokens and of the read-outs.

    With activation checkpointing each layer of the rows keeps its input, and one
    layer at a time the rest; the pass of a shared instruction is not recomputed and
    keeps all. Weights in 4 bits are unpacked one at a time. Not counted are the
    device's own context and what its allocator leaves unused.

    Args:
        train: Size of the batches, precision, checkpointing.
        llm: Scope, prefix and LoRA.
        shape: The backbone.
    """
    shapes = [(train.batch_size, train.max_len)]
    if train.batch_tokens is not None:  # what lies between is convex in the length
        longest = max(1, train.batch_tokens // train.max_len)
        shapes = [(longest, train.max_len), (train.batch_tokens, 1)]
    passes = [_pass(llm, rows, items, train.precision) for rows, items in shapes]
    return max(_step(own, train, llm, shape) for own in passes)


def _step(own: _Pass, train: TrainConfig, llm: LLMConfig, shape: BackboneShape) -> int:
    layer = _layer(own, llm, shape)
    total = shape.num_layers * _layer(own.instruction, llm, shape)
    if train.activation_checkpointing:
        total += shape.num_layers * own.tokens * shape.hidden_size * own.size
        total += layer
    else:
        total += shape.num_layers * layer
    return total + _ends(own, llm, shape) + _unpacked(llm, shape)


def ranking_bytes(
    batch_size: int,
    num_items: int,
    train: TrainConfig,
    llm: LLMConfig,
    shape: BackboneShape,
) -> int:
    """Bounds what scoring a batch of users holds, the scores included.

    One layer at a time holds its results; the soft tokens of the catalogue and the
    keys and values of the instruction stay.

    Args:
        batch_size: Users scored at once.
        num_items: Number of items.
        train: Length of the histories and precision.
        llm: Scope and prefix.
        shape: The backbone.
    """
    own = _pass(llm, batch_size, train.max_len, train.precision)
    key = shape.num_key_value_heads * shape.head_dim
    kept = 2 * shape.num_layers * own.shared * key * own.size
    kept += num_items * shape.hidden_size * own.size
    scores = 2 * 4 * batch_size * num_items
    # Attention and the feed-forward part come one after the other.
    query = shape.num_heads * shape.head_dim
    widest = max(4 * shape.intermediate_size, 4 * query + 6 * key)
    width = own.size * (5 * shape.hidden_size + widest) + 4 * shape.hidden_size
    kept += own.tokens * (width + _scores(own, llm, shape, fused=2))
    # Of the networks at the ends, only the results stay.
    kept += _ends(own, llm, shape) // 2
    return kept + scores + _unpacked(llm, shape)


def _layer(own: _Pass, llm: LLMConfig, shape: BackboneShape) -> int:
    """What one layer keeps of its input."""
    query = shape.num_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kept = own.size * (6 * hidden + 5 * query + 6 * key + 4 * inner)
    kept += 3 * 4 * hidden  # of the norms, in fp32
    if llm.weights != 'frozen' and own.size < 4:
        # Norms in fp32 are rounded once for each of the maps that read them.
        kept += 3 * own.size * hidden
    # LoRA keeps the mask and the result of the dropout on each input.
    adapted = (lora_maps(llm, shape, layer) for layer in range(shape.num_layers))
    kept += (own.size + 1) * max(sum(width for width, _ in maps) for maps in adapted)
    return own.tokens * (kept + _scores(own, llm, shape))


def _scores(own: _Pass, llm: LLMConfig, shape: BackboneShape, fused: int = 1) -> int:
    # Fused attention holds few; a causal or gated prefix needs its own.
    slow = llm.scope == 'causal' or (llm.prefix or {}).get('gate') == 'tanh'
    keys = own.length + own.shared + own.slots
    return 4 * (4 if slow else fused) * shape.num_heads * keys


def _ends(own: _Pass, llm: LLMConfig, shape: BackboneShape) -> int:
    """What stays before and behind the layers: items, prefix and read-outs."""
    hidden, items = shape.hidden_size, own.rows * own.items
    # The projector of the items' tokens, these in rows, and the last states.
    kept = items * hidden * (8 * own.size + 4 * llm.projector_layers)
    kept += own.tokens * hidden * (2 * own.size + 3 * 4)
    states = items if llm.scope == 'causal' else own.rows
    if llm.dropout > 0:  # a mask, beside what is left
        kept += items * hidden * (1 + own.size)
    if llm.head_dropout > 0:
        kept += states * hidden * (1 + 4)
    if own.slots:
        width = int((llm.prefix or {}).get('rank') or POOLED_WIDTH)
        # Products of pooled vectors and the two networks that read them; the
        # inverse norms of each layer's slots.
        kept += states * 4 * (6 * width**2 + 2 * 6 * hidden)
        kept += states * 4 * 2 * 4 * shape.num_layers * own.slots
    return kept


def _unpacked(llm: LLMConfig, shape: BackboneShape) -> int:
    """The largest matrix that 4-bit weights are unpacked into, twice."""
    if not llm.load_in_4bit:
        return 0
    return 2 * 2 * max(a * b for a, b in shape.maps.values())


def head_bytes(train: TrainConfig, llm: LLMConfig, width: int, num_items: int) -> int:
    """Bounds what the loss over all items holds beside the weights.

    Args:
        train: Size of the batches and precision.
        llm: Kind of the head.
        width: Width of the items' vectors, or of their embeddings (tied head).
        num_items: Number of items.
    """
    tokens = train.batch_tokens or train.batch_size * train.max_len
    logits = 2 * 4 * min(CHUNK, tokens * num_items)
    if llm.head == 'tied':  # embeddings side by side and scaled; the adapter
        channels = llm.head_channels or width
        return logits + 4 * num_items * (2 * width + 6 * channels)
    # The table in half precision; its gradient as it is summed up and scaled.
    return logits + num_items * width * (2 if llm.head == 'frozen_random' else 10)
