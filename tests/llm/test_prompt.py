from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hellm_pyg.llm.prompt import INSTRUCTION, RESPONSE, Prompt


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A token a word, 0 for the unknown ones, 1 for BOS."""
    vocabulary = {'[UNK]': 0, '<s>': 1, 'items': 2, 'bought': 3, 'next': 4, ':': 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token='[UNK]', bos_token='<s>'
    )


def test_pieces_are_tokenised_apart_and_start_with_bos(words):
    prompt = Prompt.from_tokenizer(words, 'items bought :', 'next :')
    assert prompt == Prompt((1, 2, 3, 5), (1, 4, 5))


def test_second_bos(words):
    prompt = Prompt.from_tokenizer(words, 'items :', 'next', second_bos=False)
    assert prompt == Prompt((1, 2, 5), (4,))


def test_a_tokenizer_without_bos(words):
    words.bos_token = None
    assert Prompt.from_tokenizer(words, 'items', 'next') == Prompt((2,), (4,))
    with pytest.raises(ValueError, match="'before' needs at least one token"):
        Prompt.from_tokenizer(words, '', '')


def test_empty_texts_are_texts(words):
    assert Prompt.from_tokenizer(words, '', '') == Prompt((1,), (1,))


def test_default_texts(words):
    prompt = Prompt.from_tokenizer(words)
    assert prompt == Prompt.from_tokenizer(words, INSTRUCTION, RESPONSE)
    assert INSTRUCTION.endswith('\n\n### Input:\n')
    assert 'predict the item bought next.' in INSTRUCTION
    assert RESPONSE == '\n### Response:\n'
    assert prompt.before[0] == 1
    assert 3 in prompt.before


def test_lists_become_tuples():
    assert Prompt([1, 2], [3]) == Prompt((1, 2), (3,))  # type: ignore[arg-type]
