from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from hellm_pyg.llm import load_backbone, random_backbone
from hellm_pyg.llm.random_backbone import completed_shape, random_model
from tests.llm.test_backbone import save
from tests.llm.tiny import KINDS, batch_of, recommender

SHAPE = {'hidden_size': 24, 'intermediate_size': 40, 'num_attention_heads': 3}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_same_model_with_other_weights(tmp_path, kind, dtype):
    name = save(tmp_path / 'model', kind)
    pretrained, _ = load_backbone(name, num_layers=2, dtype=dtype)
    model, tokenizer = random_backbone(name, num_layers=2, dtype=dtype, seed=1)
    assert type(model) is type(pretrained)
    assert tokenizer.bos_token_id == 1
    assert model.dtype == dtype
    assert model.config._attn_implementation == 'graph_prefix'
    assert model.name_or_path == f'random weights, shaped as {name}'
    shapes = {n: p.shape for n, p in pretrained.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    known = dict(pretrained.named_parameters())
    for n, p in model.named_parameters():
        assert (p.dim() < 2) or not torch.equal(p, known[n])
    # Positions are encoded alike.
    for n, buffer in model.named_buffers():
        assert torch.equal(buffer, pretrained.get_buffer(n))
        assert buffer.dtype == torch.float32


def test_weights_follow_their_seed_alone(tmp_path):
    name = save(tmp_path / 'model')
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = random_model(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = random_model(name, seed=1), random_model(name, seed=2)
    weights = [m.layers[0].mlp.up_proj.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    spread = AutoConfig.from_pretrained(name).initializer_range
    assert float(weights[0].float().std()) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize('kind', KINDS)
def test_another_shape(tmp_path, kind):
    name = save(tmp_path / 'model', kind)
    shape = {**SHAPE, 'vocab_size': 12}
    model, _ = random_backbone(name, 1, torch.float32, shape)
    assert model.embed_tokens.weight.shape == (12, 24)
    layer = model.layers[0]
    assert layer.self_attn.q_proj.weight.shape == (24, 24)
    assert layer.self_attn.k_proj.weight.shape == (24, 24)
    assert layer.mlp.up_proj.weight.shape == (40, 24)
    assert len(model.layers) == 1
    assert model.name_or_path.startswith('random weights, hidden_size 24, ')
    own = recommender(
        llm=model,
        prefix={'hidden_size': 24, 'num_layers': 1},
        lora=None,
        train_backbone=True,
    )
    assert own.score(own.encode(), batch_of([1, 2], [3])).isfinite().all()
    few, _ = random_backbone(name, shape={**SHAPE, 'num_key_value_heads': 1})
    assert few.layers[0].self_attn.k_proj.weight.shape == (8, 24)
    assert few.embed_tokens.weight.shape == (32, 24)


def test_fewer_tokens_than_the_padding_token_has(tmp_path):
    name = save(tmp_path / 'model')
    config = AutoConfig.from_pretrained(name)
    config.pad_token_id = 7
    config.save_pretrained(name)
    assert random_model(name).config.pad_token_id == 7
    model = random_model(name, shape={**SHAPE, 'vocab_size': 2})
    assert model.embed_tokens.weight.shape == (2, 24)
    with pytest.raises(ValueError, match=r"'prompt' .*'vocab_size', 2 \(got 1 to 9\)"):
        recommender(llm=model, lora=None)


def test_the_shape_is_completed():
    assert completed_shape({}) == {}
    assert completed_shape(SHAPE) == {
        **SHAPE,
        'num_key_value_heads': 3,
        'head_dim': 8,
    }


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        (
            {'hidden_size': 8},
            r"'shape' needs .*'?num_attention_heads .*got hidden_size",
        ),
        ({**SHAPE, 'width': 3}, r"'shape' .*may have .*vocab_size \(got .*width"),
        ({**SHAPE, 'hidden_size': 0}, r"'shape' needs positive integers .*: 0"),
        ({**SHAPE, 'vocab_size': True}, r"'shape' needs positive integers .*True"),
        ({**SHAPE, 'hidden_size': 27}, r"'shape' needs heads of an even width.*27"),
        ({**SHAPE, 'num_key_value_heads': 2}, r"'shape' needs heads .*heads': 2"),
    ],
)
def test_shapes_that_cannot_be(shape, message):
    with pytest.raises(ValueError, match=message):
        completed_shape(shape)


def test_layers_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"'num_layers' .*1 and 3 \(got 4"):
        random_backbone(save(tmp_path / 'model'), num_layers=4)
