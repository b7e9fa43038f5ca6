from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hellm_pyg.llm.adapter import (
    adapt,
    base_model,
    half_precision,
    without_checkpointing,
)
from tests.llm.tiny import LORA, NUM_ITEMS, batch_of, recommender, tiny_llm


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


@pytest.mark.parametrize('trained', [False, True])
def test_an_adapter_that_does_not_train_is_noted(tmp_path, caplog, trained):
    get_peft_model(tiny_llm(), LoraConfig(**LORA)).save_pretrained(tmp_path)
    llm = PeftModel.from_pretrained(tiny_llm(), tmp_path, is_trainable=trained)
    adapt(llm, None)
    assert ('is_trainable=True' in caplog.text) is not trained


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


@pytest.mark.parametrize(
    'more',
    [
        {'bias': 'lora_only', 'target_modules': ['q_proj']},
        {'modules_to_save': ['norm', 'input_layernorm']},
    ],
)
def test_what_trains_beside_lora_trains_in_fp32(more):
    model = adapt(tiny_llm('qwen2', dtype=torch.bfloat16), LORA | more)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any('lora_' not in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(torch.tensor([[1, 2, 3]])).last_hidden_state.sum().backward()
    assert all(
        p.grad is not None for name, p in trained.items() if 'lora_A' not in name
    )


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
    with pytest.raises(ValueError, match=f"(?s)'lora' does not fit .*got .*'{name}'"):
        adapt(tiny_llm(), {**LORA, **lora})


def test_a_trained_backbone_is_held_in_fp32():
    llm = tiny_llm(dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in llm.named_parameters()}
    assert half_precision(llm) == torch.bfloat16
    assert adapt(llm, None, train=True) is llm
    for name, parameter in llm.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name].float())
    assert half_precision(llm) is None


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('scope', ['causal', 'user'])
@pytest.mark.parametrize(
    ('tuning', 'trained'),
    [
        ({'lora': LORA}, {'lora', 'rest'}),
        ({'lora': None}, {'rest'}),
        ({'lora': None, 'train_backbone': True}, {'backbone', 'rest'}),
    ],
)
def test_a_step_changes_all_that_trains_and_nothing_else(tuning, trained, scope, dtype):
    model = recommender(prefix={}, scope=scope, dtype=dtype, **tuning).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    batch = batch_of(
        [1, 2, 3], [4], [5, 6], target=[7] * (6 if scope == 'causal' else 3)
    )
    model.loss(None, batch).backward()
    for name, p in model.named_parameters():
        kind = 'lora' if 'lora_' in name else 'rest'
        kind = 'backbone' if name.startswith('llm.') and kind == 'rest' else kind
        if kind == 'rest' and name.startswith('tables.'):
            continue
        assert p.requires_grad == (kind in trained), name
        assert (p.grad is not None) == (kind in trained), name
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert not p.requires_grad or p.dtype == torch.float32, name


def test_steps_that_bf16_would_lose_are_not_lost():
    model = recommender(lora=None, train_backbone=True, dtype=torch.bfloat16).train()
    weight = model.backbone.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=1e-5)
    model.loss(None, batch_of([1, 2, 3], target=[4, 5, 6])).backward()
    optimizer.step()
    changed = weight.detach() != before
    assert changed.float().mean() > 0.9
    rounded = weight.detach().bfloat16() != before.bfloat16()
    assert rounded.float().mean() < 0.1


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_trained_weights_compute_in_the_type_that_they_had(scope):
    batch = batch_of([1, 2, 3], [4], [5, 6])
    tuning = {'lora': None, 'prefix': {}, 'scope': scope}
    frozen, trained, precise = (
        recommender(dtype=dtype, train_backbone=train, **tuning)
        for dtype, train in (
            (torch.bfloat16, False),
            (torch.bfloat16, True),
            (torch.float32, True),
        )
    )
    assert frozen.dtype == trained.dtype == torch.bfloat16
    assert precise.dtype == precise.backbone.dtype == torch.float32
    kinds = set()
    trained.backbone.layers[0].mlp.register_forward_hook(
        lambda module, args, out: kinds.add(out.dtype)
    )
    found, half, full = (m.score(m.encode(), batch) for m in (trained, frozen, precise))
    assert kinds == {torch.bfloat16}
    assert found.shape == (3, NUM_ITEMS)
    for expected in (half, full):
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_what_cannot_be_trained_whole():
    with pytest.raises(ValueError, match=r"'train_backbone' .*without an adapter.*r="):
        adapt(tiny_llm(), {'r=': 1}, train=True)
    adapted = get_peft_model(tiny_llm(), LoraConfig(**LORA))
    with pytest.raises(ValueError, match=r"'train_backbone' .*got PeftModel"):
        adapt(adapted, None, train=True)
    quantised = tiny_llm()
    quantised.is_quantized = True
    with pytest.raises(ValueError, match=r"'train_backbone' .*not quantised"):
        adapt(quantised, None, train=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_checkpointing_changes_no_gradient_of_a_trained_backbone(scope, dtype):
    target = [7] * (6 if scope == 'causal' else 3)
    batch = batch_of([1, 2, 3], [4], [5, 6], target=target)
    gradients = []
    for checkpointing in (False, True):
        model = recommender(
            prefix={}, scope=scope, dtype=dtype, lora=None, train_backbone=True
        ).train()
        if checkpointing:
            model.enable_activation_checkpointing()
        model.loss(None, batch).backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
    torch.testing.assert_close(*gradients)
