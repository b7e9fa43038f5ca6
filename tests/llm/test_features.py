import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from hellm_pyg.llm.features import encode_texts


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoder')
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'blue', 'shoe']
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_encode_texts_ignores_batch_mates(encoder):
    texts = ['red shoe', 'blue', 'red red red shoe blue', 'shoe']
    together = encode_texts(texts, encoder, batch_size=4)
    alone = encode_texts(texts, encoder, batch_size=1)
    assert together.shape == (4, 16)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(4))
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_encode_texts_marks_empty_texts_as_missing(encoder):
    x = encode_texts(['red', ' ', 'blue'], encoder)
    assert x[1].isnan().all()
    assert not x[[0, 2]].isnan().any()


def test_encode_texts_needs_texts(encoder):
    with pytest.raises(ValueError, match="'texts' needs at least one"):
        encode_texts([], encoder)
