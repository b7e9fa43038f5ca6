from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hellm_pyg.llm.adapter import adapt, base_model, without_checkpointing
from tests.llm.tiny import LORA, recommender, tiny_llm


def test_lora_is_all_that_trains():
    llm = tiny_llm()
    model = adapt(llm, LORA)
    assert base_model(model) is llm
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 3 * 2
    assert all('lora_' in name for name in trained)


def test_without_lora_nothing_trains():
    llm = tiny_llm()
    assert adapt(llm, None) is base_model(llm) is llm
    assert not any(p.requires_grad for p in llm.parameters())


def test_an_adapter_that_is_there_is_kept():
    model = get_peft_model(tiny_llm(), LoraConfig(**LORA))
    assert adapt(model, None) is model


def test_half_precision_gives_the_same_without_peft_casting():
    ids = torch.tensor([[1, 2, 3]])
    outs = []
    for wrap in (adapt, lambda llm, lora: get_peft_model(llm, LoraConfig(**lora))):
        model = wrap(tiny_llm(dtype=torch.bfloat16), LORA).eval()
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                torch.nn.init.normal_(parameter, std=0.3)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs.append(model(ids).last_hidden_state)
    torch.testing.assert_close(*outs)


def test_checkpointing_pauses_and_comes_back():
    model = recommender().train()
    model.enable_activation_checkpointing()
    layers = list(model.backbone.layers)
    with without_checkpointing(model.llm):
        assert not any(layer.gradient_checkpointing for layer in layers)
    assert all(layer.gradient_checkpointing for layer in layers)


def test_checkpointing_comes_back_after_an_error():
    model = recommender().train()
    model.enable_activation_checkpointing()

    def fail() -> None:
        with without_checkpointing(model.llm):
            raise RuntimeError('stop')

    with pytest.raises(RuntimeError, match='stop'):
        fail()
    assert all(layer.gradient_checkpointing for layer in model.backbone.layers)


@pytest.mark.parametrize(
    'lora',
    [{'r': None}, {'r': 2.5}, {'rank': 4}, {'bias': 'some'}, {'lora_alpha': 'much'}],
)
def test_arguments_that_peft_stumbles_over_are_named(lora):
    (name,) = lora
    with pytest.raises(ValueError, match=f"'lora' does not fit .*got .*'{name}'"):
        adapt(tiny_llm(), {**LORA, **lora})
