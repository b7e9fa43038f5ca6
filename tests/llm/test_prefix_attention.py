"""Prefix attention against expanded, cached and one-pass-per-history oracles."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hellm_pyg.llm import prefix_attention
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prefix_attention import NAME, graph_prefix_mask
from hellm_pyg.llm.prefix_states import PrefixStates
from tests.devices import DEVICES

B, T, S, P, L, H, C = 3, 6, 4, 5, 3, 48, 8
MODELS = {
    'llama': (LlamaModel, LlamaConfig, {}),
    'mistral': (MistralModel, MistralConfig, {'head_dim': 16, 'sliding_window': 64}),
    'qwen2': (Qwen2Model, Qwen2Config, {}),
    'qwen3': (Qwen3Model, Qwen3Config, {'head_dim': 16}),
}
FIELDS = (
    'key',
    'value',
    'key_bias',
    'value_bias',
    'key_gain',
    'value_gain',
    'gate',
)


def naive_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    prefix: PrefixStates | None = None,
    context: list[tuple[Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Builds every slot of every position; all heads repeated, one by one."""
    assert prefix is not None
    layer, (rows, heads, length, d) = module.layer_idx, query.shape
    groups = heads // key.shape[1]

    def project(
        linear: Any, state: Tensor, bias: Tensor, gain: Tensor, rotation: Any = None
    ) -> Tensor:
        linear = getattr(linear, 'base_layer', linear)
        x = bias[layer][None, None] + state[:, :, None]  # [B, T or 1, P, H]
        x = x * (x.square().mean(-1, keepdim=True) + prefix.eps).rsqrt() * gain
        x = linear(x.to(query.dtype))
        x = x.expand(rows, length, -1, -1).unflatten(-1, (-1, d)).permute(0, 3, 1, 2, 4)
        if rotation is not None:
            x = apply_rotary_pos_emb(x, x, *rotation, unsqueeze_dim=0)[0]
        return x.repeat_interleave(groups, 1)  # [B, heads, T, P, d]

    slot_key = project(
        module.k_proj,
        prefix.key,
        prefix.key_bias,
        prefix.key_gain,
        prefix.rotation,
    )
    slot_value = project(
        module.v_proj, prefix.value, prefix.value_bias, prefix.value_gain
    )
    if context is not None:
        past = [part.expand(rows, -1, -1, -1) for part in context[layer]]
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        attention_mask = torch.nn.functional.pad(
            attention_mask, (past[0].shape[2], 0), value=0.0
        )
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logit = query @ key.mT * scaling + attention_mask
    slot = torch.einsum('bhtd,bhtpd->bhtp', query, slot_key) * scaling
    if prefix.gate is None:
        weight = torch.cat([slot, logit], -1).softmax(-1)
        slot, weight = weight[..., : slot.shape[-1]], weight[..., slot.shape[-1] :]
    else:
        slot = slot.softmax(-1) * prefix.gate[layer].tanh()
        weight = logit.softmax(-1)
    out = weight @ value + torch.einsum('bhtp,bhtpd->bhtd', slot, slot_value)
    return out.transpose(1, 2), None


@pytest.fixture(autouse=True, scope='module')
def _naive_is_registered() -> Iterator[None]:
    AttentionInterface.register('naive_prefix', naive_attention)
    AttentionMaskInterface.register('naive_prefix', eager_mask)
    yield
    del AttentionInterface._global_mapping['naive_prefix']
    del AttentionMaskInterface._global_mapping['naive_prefix']


def build(name: str = 'llama', attention: str = NAME, **kwargs: Any) -> PreTrainedModel:
    """A tiny model with grouped queries, biases and gains far from their start."""
    torch.manual_seed(1)
    model, config, own = MODELS[name]
    llm = model(
        config(
            vocab_size=17,
            hidden_size=H,
            intermediate_size=40,
            num_hidden_layers=L,
            num_attention_heads=6,
            num_key_value_heads=2,
            attn_implementation=attention,
            **(own | kwargs),
        )
    )
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.dim() == 1 else 0.0)
    return llm.eval()


def states(rows: int = B, length: int = T, gate: bool = False) -> PrefixStates:
    """Random states, with random gains."""
    torch.manual_seed(2)
    return PrefixStates(
        key=torch.randn(rows, length, H),
        value=torch.randn(rows, length, H),
        key_bias=torch.randn(L, P, H),
        value_bias=torch.randn(L, P, H),
        key_gain=torch.rand(H) + 0.5,
        value_gain=torch.rand(H) + 0.5,
        gate=torch.randn(L) if gate else None,
    )


def rotation(llm: Any) -> tuple[Tensor, Tensor]:
    """What the model turns keys at the first positions by."""
    cos, sin = llm.rotary_emb(torch.empty(0), torch.arange(P)[None])
    return cos[0], sin[0]


def tokens(rows: int = B, length: int = T) -> tuple[Tensor, Tensor]:
    """Embeddings of right-padded rows, and their mask."""
    torch.manual_seed(3)
    mask = torch.arange(length) < torch.tensor([length, 1, length - 2])[:rows, None]
    return torch.randn(rows, length, H), mask


def run(llm: Any, x: Tensor, mask: Tensor, start: int = P, **kwargs: Any) -> Tensor:
    """Hidden states, zero where padded."""
    steps = torch.arange(x.shape[1], device=x.device)
    position = (start + steps)[None].expand(x.shape[0], -1)
    out = llm(
        inputs_embeds=x,
        attention_mask=mask.long(),
        position_ids=position,
        use_cache=False,
        **kwargs,
    ).last_hidden_state
    return out.masked_fill(~mask[:, -x.shape[1] :, None], 0.0)


@pytest.fixture(params=['short', 'long'])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit products, and torch's fused kernel where it can be used."""
    if request.param == 'long':
        monkeypatch.setattr(prefix_attention, 'SHORT', 0)


@pytest.mark.usefixtures('_kernel')
@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('plain', ['sdpa', 'eager'])
def test_without_prefix_is_the_plain_model(name: str, plain: str) -> None:
    x, mask = tokens()
    expected = run(build(name, plain), x, mask)
    torch.testing.assert_close(run(build(name), x, mask), expected)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('gate', [False, True])
@pytest.mark.parametrize('length', [1, T])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('rotary', [False, True])
def test_equals_the_expanded_slots(
    name: str, gate: bool, length: int, shared: bool, rotary: bool
) -> None:
    x, mask = tokens()
    prefix = states(length=length, gate=gate)
    if rotary:
        prefix = replace(prefix, rotation=rotation(build(name)))
    context = None
    if shared:
        torch.manual_seed(4)
        context = [
            (torch.randn(1, 2, S, d), torch.randn(1, 2, S, d))
            for d in [build(name).layers[0].self_attn.head_dim] * L
        ]
    kwargs = {'prefix': prefix, 'context': context, 'start': P + S}
    expected = run(build(name, 'naive_prefix'), x, mask, **kwargs)
    actual = run(build(name), x, mask, **kwargs)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    plain = run(build(name), x, mask, P + S, context=context)
    assert (actual - plain).abs().max() > 1e-2


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
@pytest.mark.parametrize('gate', [False, True])
@pytest.mark.parametrize('length', [1, T])
@pytest.mark.parametrize('rotary', [False, True])
def test_gradients_equal_those_of_the_expanded_slots(
    name: str, gate: bool, length: int, rotary: bool
) -> None:
    x, mask = tokens()
    fields = FIELDS if gate else FIELDS[:-1]
    grads = []
    for attention in (NAME, 'naive_prefix'):
        raw = states(length=length, gate=gate)
        raw.rotation = rotation(build(name)) if rotary else None
        leaves = {f: getattr(raw, f).clone().requires_grad_() for f in fields}
        embeds = x.clone().requires_grad_()
        d = build(name).layers[0].self_attn.head_dim
        shared = torch.linspace(-1, 1, 2 * L * 2 * S * d).view(L, 2, 1, 2, S, d)
        shared.requires_grad_()
        out = run(
            build(name, attention),
            embeds,
            mask,
            prefix=replace(raw, **leaves),
            context=[(k, v) for k, v in shared],
        )
        out.square().sum().backward()
        grads.append([embeds.grad, shared.grad, *(x.grad for x in leaves.values())])
    for actual, expected, name in zip(*grads, ['x', 'context', *fields], strict=True):
        assert expected.abs().max() > 0, name
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, (name, error)


@pytest.mark.usefixtures('_kernel')
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', ['llama', 'qwen2'])
@pytest.mark.parametrize('gate', [False, True])
@pytest.mark.parametrize('length', [1, T], ids=['user', 'causal'])
def test_a_device_gives_the_expanded_slots_in_fp32(
    device: str, dtype: torch.dtype, name: str, gate: bool, length: int
) -> None:
    x, mask = tokens()
    found = []
    for where, kind, attention in (
        ('cpu', torch.float32, 'naive_prefix'),
        (device, dtype, NAME),
    ):
        llm = build(name, attention).to(dtype).to(where, kind)  # rounded alike
        prefix = states(length=length, gate=gate)
        leaves = {
            key: value.to(where).requires_grad_()
            for key, value in vars(states(length=length, gate=gate)).items()
            if key in FIELDS and value is not None
        }
        embeds = x.detach().to(where, kind).requires_grad_()
        with torch.autocast(where, torch.bfloat16, enabled=kind == torch.bfloat16):
            prefix = replace(prefix, **leaves)
            out = run(llm, embeds, mask.to(where), prefix=prefix).float()
        out.square().mean().backward()
        parts = [out, embeds.grad, *(leaf.grad for leaf in leaves.values())]
        assert {part.device.type for part in parts} == {where}
        found.append([part.detach().float().cpu() for part in parts])
    for index, (expected, actual) in enumerate(zip(*found, strict=True)):
        # The gradients of three gates are large sums that cancel.
        tolerance = 0.2 if expected.numel() > L else 1.0
        tolerance = 1e-4 if dtype == torch.float32 else tolerance
        error = (actual - expected).norm() / expected.norm()
        assert error < tolerance, (index, error)


@pytest.mark.usefixtures('_kernel')
@pytest.mark.parametrize('name', ['llama', 'mistral', 'qwen2'])
@pytest.mark.parametrize('rotary', [False, True])
def test_user_level_equals_a_cache_of_the_unmodified_model(
    name: str, rotary: bool
) -> None:
    x, mask = tokens()
    llm = build(name, 'sdpa')
    prefix = replace(states(length=1), rotation=rotation(llm) if rotary else None)
    cache = DynamicCache()
    for layer, block in enumerate(llm.layers):
        pairs = []
        for linear, state, bias, gain in (
            (block.self_attn.k_proj, prefix.key, prefix.key_bias, prefix.key_gain),
            (
                block.self_attn.v_proj,
                prefix.value,
                prefix.value_bias,
                prefix.value_gain,
            ),
        ):
            norm = torch.nn.functional.rms_norm
            slot = norm(bias[layer] + state, (H,), gain, prefix.eps)
            head_dim = block.self_attn.head_dim
            pairs.append(linear(slot).unflatten(-1, (-1, head_dim)).transpose(1, 2))
        if rotary:
            pairs[0] = apply_rotary_pos_emb(pairs[0], pairs[0], *rotation(llm), 0)[0]
        cache.update(*pairs, layer)
    expected = llm(
        inputs_embeds=x,
        attention_mask=torch.cat([torch.ones(B, P), mask], 1).long(),
        position_ids=(P + torch.arange(T))[None].expand(B, -1),
        past_key_values=cache,
    ).last_hidden_state
    actual = run(build(name), x, mask, prefix=prefix)
    expected = expected.masked_fill(~mask[..., None], 0.0)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def graph_prefix(scope: str = 'causal', **kwargs: Any) -> GraphPrefix:
    torch.manual_seed(5)
    options = {'rank': 4, 'scale': 'sqrt_l2', 'num_tokens': P, 'hidden_channels': 12}
    prefix = GraphPrefix(C, H, L, scope=scope, **(options | kwargs)).eval()
    with torch.no_grad():
        for name, parameter in prefix.named_parameters():
            if 'norm' in name or 'gate' in name:
                parameter.normal_().add_(0.5)
    return prefix


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('gate', ['none', 'tanh'])
def test_causal_equals_one_pass_a_history(name: str, gate: str) -> None:
    llm, prefix = build(name), graph_prefix(gate=gate)
    x, mask = tokens()
    items = torch.randn(B, T, C)
    instruction = torch.randn(1, S, H)
    everything = torch.ones(1, S, dtype=torch.bool)
    record: list[tuple[Tensor, Tensor]] = []
    run(llm, instruction, everything, prefix=prefix.instruction(), record=record)
    assert len(record) == L
    actual = run(llm, x, mask, P + S, prefix=prefix(items, mask), context=record)
    # Each history by itself, with its instruction in front of it.
    for row in range(B):
        for t in range(int(mask[row].sum())):
            seen = slice(0, t + 1)
            full = torch.cat([instruction, x[row : row + 1, seen]], 1)
            item_states = prefix(items[row : row + 1, seen], mask[row : row + 1, seen])
            start = prefix.instruction()
            whole = replace(
                item_states,
                key=torch.cat([start.key.expand(1, S, -1), item_states.key], 1),
                value=torch.cat([start.value.expand(1, S, -1), item_states.value], 1),
            )
            length = torch.ones(1, S + t + 1, dtype=torch.bool)
            expected = run(llm, full, length, prefix=whole)[0, -1]
            torch.testing.assert_close(actual[row, t], expected, atol=5e-5, rtol=1e-4)


def test_no_position_sees_the_future() -> None:
    llm, prefix = build(), graph_prefix(scale='sum')
    x, _ = tokens(rows=1)
    items = torch.randn(1, T, C)
    mask = torch.ones(1, T, dtype=torch.bool)
    before = run(llm, x, mask, prefix=prefix(items, mask))
    for t in range(1, T):
        later_x, later_items = x.clone(), items.clone()
        later_x[:, t:] += 1.0
        later_items[:, t:] += 1.0
        after = run(llm, later_x, mask, prefix=prefix(later_items, mask))
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize('gate', ['none', 'tanh'])
def test_rows_ignore_their_mates_and_padding(gate: str) -> None:
    llm, prefix = build(), graph_prefix(gate=gate)
    x, mask = tokens()
    items = torch.randn(B, T, C).masked_fill(~mask[..., None], float('nan'))
    together = run(llm, x, mask, prefix=prefix(items, mask))
    assert together.isfinite().all()
    for row in range(B):
        n = int(mask[row].sum())
        real = (slice(row, row + 1), slice(0, n))
        alone = run(llm, x[real], mask[real], prefix=prefix(items[real], mask[real]))
        torch.testing.assert_close(together[row, :n], alone[0], atol=2e-5, rtol=1e-4)


def test_left_padding_of_the_user_level_form() -> None:
    llm, prefix = build(), graph_prefix('user')
    x, mask = tokens()
    items = torch.randn(B, T, C)
    right = run(llm, x, mask, prefix=prefix(items, mask))
    for row in range(B):
        n = int(mask[row].sum())
        pad = torch.zeros(1, T - n, dtype=torch.bool)
        left = torch.cat([pad, mask[row : row + 1, :n]], 1)
        moved = x[row : row + 1].roll(T - n, 1)
        out = llm(
            inputs_embeds=moved,
            attention_mask=left.long(),
            position_ids=(left.cumsum(1) - 1).clamp(min=0) + P,
            prefix=prefix(items[row : row + 1], mask[row : row + 1]),
        ).last_hidden_state
        torch.testing.assert_close(
            out[0, T - n :], right[row, :n], atol=2e-5, rtol=1e-4
        )


def test_closed_gate_is_the_plain_model() -> None:
    llm, x_mask = build(), tokens()
    prefix = graph_prefix(gate='tanh')
    items = torch.randn(B, T, C)
    with torch.no_grad():
        prefix.layer_gate.zero_()
    actual = run(llm, *x_mask, prefix=prefix(items, x_mask[1]))
    torch.testing.assert_close(actual, run(llm, *x_mask), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('length', [1, T])
@pytest.mark.parametrize('gate', [False, True])
def test_no_slots_are_the_plain_model(length: int, gate: bool) -> None:
    x, mask = tokens()
    prefix = states(length=length, gate=gate)
    empty = replace(
        prefix, key_bias=prefix.key_bias[:, :0], value_bias=prefix.value_bias[:, :0]
    )
    actual = run(build(), x, mask, prefix=empty)
    torch.testing.assert_close(actual, run(build(), x, mask), atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures('_kernel')
def test_context_equals_the_whole_sequence() -> None:
    llm = build()
    x, mask = tokens()
    instruction = torch.randn(1, S, H)
    record: list[tuple[Tensor, Tensor]] = []
    run(llm, instruction, torch.ones(1, S, dtype=torch.bool), 0, record=record)
    actual = run(llm, x, mask, S, context=record)
    whole = torch.cat([instruction.expand(B, -1, -1), x], 1)
    seen = torch.cat([torch.ones(B, S, dtype=torch.bool), mask], 1)
    expected = run(llm, whole, seen, 0)[:, S:]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_slots_are_not_rotated() -> None:
    """Rotary logits depend on distances, those of the slots on positions."""
    llm = build()
    x, mask = tokens()
    prefix = states()
    moved = run(llm, x, mask, 9, prefix=prefix)
    assert (moved - run(llm, x, mask, 0, prefix=prefix)).abs().max() > 1e-3
    torch.testing.assert_close(run(llm, x, mask, 9), run(llm, x, mask, 0))


@pytest.mark.parametrize('length', [1, T])
def test_rotated_slots_depend_on_distances_alone(length: int) -> None:
    llm = build()
    x, mask = tokens()
    cos, sin = (part[0] for part in llm.rotary_emb(x, torch.arange(P + 9)[None]))
    near, far = (
        replace(states(length=length), rotation=(cos[i : i + P], sin[i : i + P]))
        for i in (0, 9)
    )
    out = run(llm, x, mask, P, prefix=near)
    moved = run(llm, x, mask, P + 9, prefix=far)
    torch.testing.assert_close(moved, out, atol=2e-5, rtol=1e-4)
    assert (run(llm, x, mask, P + 9, prefix=near) - out).abs().max() > 1e-3
    assert (run(llm, x, mask, prefix=states(length=length)) - out).abs().max() > 1e-3


@pytest.mark.parametrize('lora', [False, True])
def test_activation_checkpointing_changes_no_gradient(lora: bool) -> None:
    x, mask = tokens()
    items = torch.randn(B, T, C)
    grads = []
    for checkpointing in (False, True):
        llm: Any = build()
        if lora:
            llm = get_peft_model(llm, LoraConfig(target_modules=['up_proj', 'k_proj']))
            for name, parameter in llm.named_parameters():
                if 'lora_B' in name:
                    torch.nn.init.constant_(parameter, 0.02)
        llm.train()
        prefix = graph_prefix()
        if checkpointing:
            enable = getattr(llm, 'activation_checkpointing_enable', None)
            enable = enable or llm.gradient_checkpointing_enable
            enable({'use_reentrant': False})
        embeds = x.clone().requires_grad_()
        instruction = torch.ones(1, S, H).requires_grad_()
        record: list[tuple[Tensor, Tensor]] = []
        everything = torch.ones(1, S, dtype=torch.bool)
        run(llm, instruction, everything, prefix=prefix.instruction(), record=record)
        assert len(record) == L
        out = run(llm, embeds, mask, P + S, prefix=prefix(items, mask), context=record)
        out.square().mean().backward()
        assert len(record) == L
        leaves = [embeds, instruction, *prefix.parameters()]
        leaves += [p for n, p in llm.named_parameters() if 'lora' in n]
        grads.append([leaf.grad for leaf in leaves])
    for plain, recomputed in zip(*grads, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(recomputed, plain)


def test_slots_pass_by_the_adapters() -> None:
    x, mask = tokens()
    prefix = states()
    config = LoraConfig(
        target_modules=['k_proj', 'v_proj'], init_lora_weights=False, r=4
    )
    llm = get_peft_model(build(), config).eval()
    naive = copy.deepcopy(llm)
    naive.base_model.model.config._attn_implementation = 'naive_prefix'
    torch.testing.assert_close(
        run(llm, x, mask, prefix=prefix),
        run(naive, x, mask, prefix=prefix),
        atol=2e-5,
        rtol=1e-4,
    )
    with llm.disable_adapter():
        plain = run(llm, x, mask, prefix=prefix)
    assert (run(llm, x, mask, prefix=prefix) - plain).abs().max() > 1e-2


def test_merged_adapters_that_slots_would_pass_through_are_refused() -> None:
    x, mask = tokens()
    config = LoraConfig(target_modules=['v_proj'], init_lora_weights=False, r=4)
    llm = get_peft_model(build(), config).eval()
    expected = run(llm, x, mask, prefix=states())
    llm.merge_adapter()
    with pytest.raises(
        ValueError, match=r"with \['default'\] merged.*unmerge_adapter\(\)"
    ):
        run(llm, x, mask, prefix=states())
    assert run(llm, x, mask).isfinite().all()
    llm.unmerge_adapter()
    torch.testing.assert_close(run(llm, x, mask, prefix=states()), expected)


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
@pytest.mark.parametrize('gate', [False, True])
@pytest.mark.parametrize('how', ['weights', 'autocast', 'mixed'])
@pytest.mark.parametrize('rotary', [False, True])
def test_bf16_is_close_to_fp32(name: str, gate: bool, how: str, rotary: bool) -> None:
    x, mask = tokens()
    prefix = states(gate=gate)
    prefix.rotation = rotation(build(name)) if rotary else None
    context = [(torch.randn(1, 2, S, 8), torch.randn(1, 2, S, 8)) for _ in range(L)]
    exact = run(build(name), x, mask, prefix=prefix, context=context)
    llm = build(name)
    if how != 'autocast':
        llm = llm.to(torch.bfloat16)
    if how == 'weights':
        x = x.to(torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16, enabled=how != 'weights'):
        close = run(llm, x, mask, prefix=prefix, context=context)
    error = (close.float() - exact).square().mean().sqrt()
    assert 0 < error < 0.06 * exact.square().mean().sqrt()


def test_roots_are_taken_in_single_precision() -> None:
    half = {
        name: value.to(torch.bfloat16)
        for name, value in vars(states()).items()
        if isinstance(value, Tensor) and name in PrefixStates.__dataclass_fields__
    }
    prefix = PrefixStates(**half)
    assert prefix.key_scale[0].dtype == torch.float32
    slot = half['key_bias'][0].float() + half['key'].float()[:, :, None]
    expected = (slot.square().mean(-1) + prefix.eps).rsqrt()
    torch.testing.assert_close(prefix.key_scale[0], expected)
    # A state that cancels a bias leaves the root of eps, never of less than it.
    cancelled = PrefixStates(
        **half
        | {'key': -half['key_bias'][0, :1, None].expand(1, 1, H).contiguous()}
        | {'value': half['value'][:1, :1]}
    )
    largest = cancelled.key_scale[0].max()
    torch.testing.assert_close(largest, torch.tensor(prefix.eps**-0.5))


@pytest.mark.parametrize('rotary', [False, True])
def test_nothing_of_positions_times_slots_times_width_is_built(rotary: bool) -> None:
    rows, length, slots = 4, 24, 16
    torch.manual_seed(0)
    prefix = GraphPrefix(
        C,
        H,
        L,
        num_tokens=slots,
        rank=2,
        scope='causal',
        hidden_channels=8,
        rotary=rotary,
    )
    llm = build()
    turned = None
    if rotary:
        cos, sin = llm.rotary_emb(torch.empty(0), torch.arange(slots)[None])
        turned = cos[0], sin[0]
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.untyped_storage().nbytes() // 4 for x in _tensors(out))
            return out

    x = torch.randn(rows, length, H, requires_grad=True)
    mask = torch.ones(rows, length, dtype=torch.bool)
    with Watch():
        states_ = prefix(torch.randn(rows, length, C), mask, turned)
        run(llm, x, mask, prefix=states_).sum().backward()
    d, heads = H // 6, 6
    # Logits are the largest: less than the slots of a single head would be.
    assert max(sizes) <= rows * length * heads * (length + slots)
    assert max(sizes) < rows * length * slots * H
    assert heads * (length + slots) < slots * heads * d


def _tensors(out: Any) -> list[Tensor]:
    out = out if isinstance(out, tuple | list) else [out]
    return [x for x in out if isinstance(x, Tensor)]


def test_the_mask_is_never_left_out() -> None:
    mask = graph_prefix_mask(batch_size=2, q_length=3, kv_length=3)
    assert torch.equal(mask[0, 0], torch.ones(3, 3).tril().bool())
    padded = torch.tensor([[True, True, False]])
    mask = graph_prefix_mask(
        batch_size=1, q_length=3, kv_length=3, attention_mask=padded
    )
    assert torch.equal(mask[0, 0, 2], padded[0])


def test_attention_dropout() -> None:
    x, mask = tokens()
    prefix = states()
    llm = build(attention_dropout=0.5)
    expected = run(build(), x, mask, prefix=prefix)
    torch.testing.assert_close(run(llm, x, mask, prefix=prefix), expected)
    llm.train()
    torch.manual_seed(0)
    first = run(llm, x, mask, prefix=prefix)
    assert not torch.allclose(first, run(llm, x, mask, prefix=prefix))
    torch.manual_seed(0)
    torch.testing.assert_close(run(llm, x, mask, prefix=prefix), first)


def test_projections_that_are_called_only() -> None:
    """Quantised layers hold no weight to multiply with."""

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.inner, self.bias = [linear], linear.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[0](x)

    x, mask = tokens()
    for name in ('llama', 'qwen2'):
        for length in (1, T):
            prefix = states(length=length)
            expected = run(build(name), x, mask, prefix=prefix)
            llm = build(name)
            for layer in llm.layers:
                layer.self_attn.k_proj = Packed(layer.self_attn.k_proj)
                layer.self_attn.v_proj = Packed(layer.self_attn.v_proj)
            actual = run(llm, x, mask, prefix=prefix)
            torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('length', [1, T])
def test_a_window_hides_no_slot_and_must_hold_the_sequence(length: int) -> None:
    x, mask = tokens()
    prefix = states(length=length)
    expected = run(build('mistral', sliding_window=None), x, mask, prefix=prefix)
    actual = run(build('mistral', sliding_window=T), x, mask, prefix=prefix)
    torch.testing.assert_close(actual, expected)
    short = build('mistral', sliding_window=T - 1)
    with pytest.raises(ValueError, match=r"'sliding_window'.*got 5 < 6 tokens"):
        run(short, x, mask, prefix=prefix)
    context = [(torch.zeros(1, 2, S, 16),) * 2] * L
    with pytest.raises(ValueError, match=r"'sliding_window'.*got 6 < 10 tokens"):
        run(build('mistral', sliding_window=T), x, mask, context=context)
    windowed = run(build('mistral', 'eager', sliding_window=T - 1), x, mask)
    torch.testing.assert_close(run(short, x, mask), windowed)


def test_bad_input() -> None:
    x, mask = tokens()
    llm, prefix = build(), states()
    few = {'key_bias': prefix.key_bias[:2], 'value_bias': prefix.value_bias[:2]}
    with pytest.raises(ValueError, match='got 2 layers, none for layer 2'):
        run(llm, x, mask, prefix=replace(prefix, **few))
    with pytest.raises(ValueError, match=r"'prefix' needs one state.*\[3, 2, 48\]"):
        run(llm, x, mask, prefix=states(length=2))
    with pytest.raises(ValueError, match=r"'prefix' needs one state.*\[2, 6, 48\]"):
        run(llm, x, mask, prefix=states(rows=2))
    with pytest.raises(ValueError, match=r"'context' needs.*got 1 layers"):
        run(llm, x, mask, context=[(torch.zeros(1, 2, S, 8),) * 2])
    with pytest.raises(ValueError, match=r"'context' needs.*batch size 1"):
        run(llm, x, mask, context=[(torch.zeros(B, 2, S, 8),) * 2] * L)
    attention = llm.layers[0].self_attn
    qkv = [torch.zeros(B, h, T, 8) for h in (6, 2, 2)]
    with pytest.raises(ValueError, match=r"'attention_mask' is missing"):
        prefix_attention.graph_prefix_attention(attention, *qkv, None, prefix=prefix)
    seen = torch.ones(B, 1, T, T, dtype=torch.bool)
    with pytest.raises(ValueError, match='softcap'):
        prefix_attention.graph_prefix_attention(
            attention, *qkv, seen, prefix=prefix, softcap=30.0
        )
    del attention.k_proj
    with pytest.raises(ValueError, match=r"'k_proj'.*got LlamaAttention"):
        prefix_attention.graph_prefix_attention(attention, *qkv, seen, prefix=prefix)
