"""What a recommender computes once and uses for all users."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hellm_pyg.llm.prefix_attention import LayerKeyValues


@dataclass(frozen=True, eq=False)
class Instruction:
    """The instruction, read once for all rows.

    Args:
        keyvalues: Post-rotary keys and values of each layer.
        state: Last state of its last token, :math:`[H]`: the read-out of an
            empty history.
    """

    keyvalues: LayerKeyValues
    state: Tensor


@dataclass(frozen=True, eq=False)
class EncodedCatalogue:
    """What scoring needs and no user changes.

    Args:
        token: Soft token of every item, :math:`[I, H]`.
        instruction: The instruction, where all rows share it.
        vectors: The head's vector of every item, :math:`[I, k]`.
        bias: The head's bias of every item, :math:`[I]`, if it has one.
    """

    token: Tensor
    instruction: Instruction | None
    vectors: Tensor
    bias: Tensor | None
