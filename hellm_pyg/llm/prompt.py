"""The words around the item tokens."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

INSTRUCTION = (
    'You get an instruction for a task and an input with context. '
    'Write a response that completes the task.\n\n'
    '### Instruction:\n'
    'Here is what a user bought so far, in order; predict the item bought next.'
    '\n\n### Input:\n'
)
RESPONSE = '\n### Response:\n'


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the items of a history.

    The row of a user reads ``[before] [one soft token an item] [after]``. With
    ``scope='causal'`` the prediction is read at the items, and ``after`` is not
    used.

    Args:
        before: Ids of the instruction; at least one.
        after: Ids of the heading of the response.

    Raises:
        ValueError: If ``before`` is empty.
    """

    before: tuple[int, ...]
    after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # JSON hands lists over.
        object.__setattr__(self, 'before', tuple(self.before))
        object.__setattr__(self, 'after', tuple(self.after))
        if not self.before:
            raise ValueError(
                "'before' needs at least one token, for an empty history is read "
                'there (got an empty instruction and a tokenizer without a BOS '
                'token)'
            )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str | None = None,
        response: str | None = None,
        second_bos: bool = True,
    ) -> Prompt:
        """Tokenises both pieces separately.

        Both start with the tokenizer's BOS token if it has one, whether or not
        the tokenizer adds it by itself.

        Args:
            tokenizer: Tokenizer of the backbone.
            instruction: Text before the items; :obj:`None` for the default.
            response: Text after the items; :obj:`None` for the default.
            second_bos: Start the response with another BOS token.
        """
        before = INSTRUCTION if instruction is None else instruction
        after = RESPONSE if response is None else response
        bos = tokenizer.bos_token_id
        start = [] if bos is None else [bos]
        return cls(
            before=(*start, *tokenizer.encode(before, add_special_tokens=False)),
            after=(
                *(start if second_bos else []),
                *tokenizer.encode(after, add_special_tokens=False),
            ),
        )
