"""A backbone in 4 bits; where it lies, transformers decides (the GPU, if any)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, PreTrainedModel

from hellm_pyg.backbone_shape import BackboneShape
from hellm_pyg.llm import LLMRecommender
from hellm_pyg.llm.backbone import load_model
from tests.llm.tiny import batch_of, recommender

bitsandbytes = pytest.importorskip('bitsandbytes', minversion='0.46.1')

HISTORIES = ([1, 2, 3, 4], [5], [6, 7])
PREFIX = {'hidden_size': 256, 'rank': 2, 'gate': 'tanh'}
SCOPES = pytest.mark.parametrize('scope', ['causal', 'user'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    llm = AutoModel.from_config(
        LlamaConfig(
            vocab_size=32,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    path = tmp_path_factory.mktemp('llm')
    llm.to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def llm(folder: Path) -> PreTrainedModel:
    return load_model(str(folder), load_in_4bit=True)


def make(llm: PreTrainedModel, scope: str) -> LLMRecommender:
    return recommender(llm=llm, prefix=PREFIX, scope=scope).to(llm.device)


def unpacked(model: LLMRecommender) -> LLMRecommender:
    """The same model with its weights in half precision again."""
    plain = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            )
            linear = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.bfloat16)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            plain.set_submodule(name, linear)
    return plain


def gradient(model: LLMRecommender, scope: str) -> torch.Tensor:
    target = [1] * (7 if scope == 'causal' else 3)
    batch = batch_of(*HISTORIES, target=target).to(model.before.device)
    model.zero_grad()
    model.train().loss(None, batch).backward()
    parts = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(part is not None for part in parts)
    return torch.cat([part.flatten() for part in parts])


def scores(model: LLMRecommender) -> torch.Tensor:
    batch = batch_of(*HISTORIES).to(model.before.device)
    return model.eval().score(model.encode(), batch)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_bytes_of_a_weight(llm: PreTrainedModel) -> None:
    found = number = 0
    for module in llm.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            found += module.weight.numel() + state.absmax.numel()
            found += 4 * state.state2.absmax.numel()
            number += 2 * module.weight.numel()
    assert number == BackboneShape(256, 2, 4, 2, 64, 512, 32).num_linear
    assert found / number == pytest.approx(0.516, abs=1e-3)
    assert llm.dtype == torch.bfloat16


@SCOPES
def test_scores_and_gradients_are_those_of_the_unpacked_weights(
    llm: PreTrainedModel, scope: str
) -> None:
    model = make(llm, scope)
    plain = unpacked(model)
    assert difference(scores(model), scores(plain)) < 0.05
    expected = gradient(plain, scope)
    assert difference(gradient(model, scope), expected) < 0.1
    model.enable_activation_checkpointing()
    assert difference(gradient(model, scope), expected) < 0.1


@SCOPES
def test_round_trip(llm: PreTrainedModel, tmp_path: Path, scope: str) -> None:
    model = make(llm, scope)
    model.save_pretrained(tmp_path / 'saved')
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    assert again.backbone.is_loaded_in_4bit
    assert {value.device for value in again.parameters()} == {llm.device}
    torch.testing.assert_close(scores(again), scores(model))
