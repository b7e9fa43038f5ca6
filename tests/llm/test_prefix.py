"""Graph prefix: pooling, generation, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.nn import SecondOrderAggregation

B, T, C, H, L, P = 3, 7, 6, 20, 2, 4


def build(scope: str = 'causal', **kwargs: Any) -> GraphPrefix:
    torch.manual_seed(0)
    return GraphPrefix(
        C, H, L, **({'num_tokens': P, 'scope': scope, 'rank': 3} | kwargs)
    ).eval()


def histories(nan: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(T) < torch.tensor([T, 1, 4])[:, None]
    x = torch.randn(B, T, C)
    return (x.masked_fill(~mask[..., None], float('nan')) if nan else x), mask


def dense_pooled(prefix: GraphPrefix, items: Tensor) -> Tensor:
    """The definition, for the items of one history, in double precision."""
    items = items.double()
    if prefix.rank is not None:
        items = items @ prefix.pooling.weight.double()
    matrix = sum(torch.outer(row, row) for row in items)
    if prefix.scale != 'sum':
        matrix = matrix / len(items)
    if prefix.scale == 'sqrt_l2':
        matrix = matrix.sign() * matrix.abs().sqrt()
        matrix = matrix / matrix.norm()
    return matrix.flatten()


@pytest.mark.parametrize('scale', ['sum', 'mean', 'sqrt_l2'])
@pytest.mark.parametrize('rank', [None, 3])
def test_pooling_follows_the_definition(scale: str, rank: int | None) -> None:
    x, mask = histories(nan=True)
    causal = build('causal', scale=scale, rank=rank)
    user = build('user', scale=scale, rank=rank)
    each, whole = causal.pooled(x, mask), user.pooled(x, mask)
    assert each.shape == (B, T, (rank or C) ** 2)
    assert whole.shape == (B, 1, (rank or C) ** 2)
    for row in range(B):
        for t in range(int(mask[row].sum())):
            expected = dense_pooled(causal, x[row, : t + 1]).float()
            torch.testing.assert_close(each[row, t], expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(whole[row, 0], expected, atol=1e-3, rtol=1e-4)


def test_user_scope_is_second_order_aggregation() -> None:
    x, mask = histories(nan=True)
    pool = SecondOrderAggregation(C, 3)
    prefix = build('user')
    pool.load_state_dict(prefix.pooling.state_dict())
    for row in range(B):
        expected = pool(x[row][mask[row]], torch.zeros(int(mask[row].sum())).long())
        torch.testing.assert_close(prefix.pooled(x, mask)[row], expected)


@pytest.mark.parametrize('scale', ['sum', 'mean', 'sqrt_l2'])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_last_position_of_causal_is_the_user_form(scale: str, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    left = data.draw(st.booleans())
    causal, user = build('causal', scale=scale), build('user', scale=scale)
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    x = torch.randn(len(lengths), width, C)
    each, whole = causal(x, mask), user(x, mask)
    last = torch.tensor([width if left else n for n in lengths]) - 1
    rows = torch.arange(len(lengths))
    for name in ('key', 'value'):
        actual = getattr(each, name)[rows, last]
        expected = getattr(whole, name)[:, 0]
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(each.key_bias, whole.key_bias)


def test_slots_follow_equation_10() -> None:
    x, mask = histories()
    prefix = build('user', scale='mean', gate='tanh')
    with torch.no_grad():
        for norm in ('key_norm', 'value_norm', 'key_state_norm', 'value_state_norm'):
            getattr(prefix, norm).weight.normal_()
        prefix.layer_gate.normal_()
    states = prefix(x, mask)
    g = prefix.pooled(x, mask)
    for name in ('key', 'value'):
        first, second = getattr(prefix, f'{name}_mlp').lins
        gelu = torch.nn.functional.gelu
        u = gelu(gelu(g @ first.weight.T + first.bias) @ second.weight.T + second.bias)
        u = u / (u.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        u = u * getattr(prefix, f'{name}_state_norm').weight
        torch.testing.assert_close(getattr(states, name), u)
        assert torch.equal(
            getattr(states, f'{name}_gain'), getattr(prefix, f'{name}_norm').weight
        )
    assert states.eps == 1e-5
    assert torch.equal(states.gate, prefix.layer_gate)


def test_a_row_ignores_its_mates_and_padding() -> None:
    x, mask = histories(nan=True)
    for scope in ('user', 'causal'):
        prefix = build(scope, scale='sqrt_l2')
        together = prefix(x, mask)
        for row in range(B):
            n = int(mask[row].sum())
            alone = prefix(x[row : row + 1, :n], mask[row : row + 1, :n])
            actual = together.key[row : row + 1, :n]
            torch.testing.assert_close(actual, alone.key, atol=1e-5, rtol=1e-5)


def test_order_matters_to_the_causal_scope_only() -> None:
    x, _ = histories()
    mask = torch.ones(B, T, dtype=torch.bool)
    user, causal = build('user'), build('causal')
    flipped = x.flip(1)
    torch.testing.assert_close(user(x, mask).key, user(flipped, mask).key)
    assert not torch.allclose(causal(x, mask).key, causal(flipped, mask).key)


@pytest.mark.parametrize('scale', ['sum', 'mean', 'sqrt_l2'])
@pytest.mark.parametrize('scope', ['user', 'causal'])
def test_nothing_is_dead_and_nothing_is_nan(scale: str, scope: str) -> None:
    prefix = build(scope, scale=scale, gate='tanh').train()
    with torch.no_grad():
        prefix.layer_gate.fill_(0.3)
    x, mask = histories(nan=True)
    x[0, 0] = 0.0  # an item without embedding
    mask = mask & (torch.arange(B) != 2)[:, None]  # and a user without history
    states = prefix(x, mask)
    total = sum(
        (value * torch.randn_like(value)).sum()
        for value in (
            states.key_state,
            states.value_state,
            *states.key_slot,
            *states.value_slot,
            *states.key_scale,
            *states.value_scale,
            *states.share,
        )
    )
    total.backward()
    for name, parameter in prefix.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_static_prefix() -> None:
    prefix = build('user', pool=False)
    assert sorted(name for name, _ in prefix.named_parameters()) == [
        'key_bias',
        'key_norm.weight',
        'value_bias',
        'value_norm.weight',
    ]
    x, mask = histories()
    states = prefix(x, mask)
    assert states.key.shape == (1, 1, H)
    assert not states.key.any()
    expected = (prefix.key_bias.square().mean(-1) + 1e-5).rsqrt()
    torch.testing.assert_close(torch.stack(states.key_scale)[:, 0, 0], expected)
    assert torch.equal(prefix.instruction().key, states.key)


@pytest.mark.parametrize('scale', ['sum', 'mean', 'sqrt_l2'])
def test_instruction_pools_nothing(scale: str) -> None:
    prefix = build(scale=scale)
    x, _ = histories()
    nothing = prefix(x, torch.zeros(B, T, dtype=torch.bool))
    instruction = prefix.instruction()
    assert instruction.key.shape == (1, 1, H)
    torch.testing.assert_close(nothing.key, instruction.key.expand(B, T, -1))
    torch.testing.assert_close(nothing.value, instruction.value.expand(B, T, -1))
    assert instruction.key.abs().max() > 0
    with pytest.raises(ValueError, match=r"'scope' needs to be 'causal'.*got 'user'"):
        build('user').instruction()


def test_start() -> None:
    prefix = GraphPrefix(C, 200, 8, gate='tanh')
    for bias in (prefix.key_bias, prefix.value_bias):
        assert abs(bias.mean()) < 0.05
        assert abs(bias.std() - 1.0) < 0.05
    assert not prefix.layer_gate.any()
    assert torch.equal(prefix.key_norm.weight, torch.ones(200))
    before = prefix.key_bias.clone()
    prefix.reset_parameters()
    assert not torch.equal(before, prefix.key_bias)


def test_parameter_counts_of_llama_2_7b() -> None:
    with torch.device('meta'):
        prefix = GraphPrefix(64, 4096, 32)
        lean = GraphPrefix(64, 4096, 32, rank=16, hidden_channels=256, gate='tanh')
    counts: dict[str, int] = {}
    for name, parameter in prefix.named_parameters():
        part = name.split('.')[0].split('_', 1)[1]
        part = 'norm' if part.endswith('norm') else part
        counts[part] = counts.get(part, 0) + parameter.numel()
    assert counts == {'mlp': 67_125_248, 'bias': 2_621_440, 'norm': 16_384}
    expected = 64 * 16 + 32 + 2_621_440 + 16_384
    expected += 2 * (256 * 256 + 256 + 256 * 4096 + 4096)
    assert sum(p.numel() for p in lean.parameters()) == expected


@pytest.mark.parametrize('autocast', [False, True])
def test_pooling_and_norms_stay_in_single_precision(autocast: bool) -> None:
    x, mask = histories()
    prefix = build()
    exact = prefix.pooled(x, mask)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        assert torch.equal(prefix.pooled(x, mask), exact)
        states = prefix(x, mask)
    assert states.key.dtype == states.key_scale[0].dtype == torch.float32
    half = prefix.pooled(x.to(torch.bfloat16), mask)
    assert half.dtype == torch.float32


def test_dropout_is_that_of_the_generator() -> None:
    x, mask = histories()
    prefix = build(dropout=0.5)
    assert torch.equal(prefix(x, mask).key, prefix(x, mask).key)
    prefix.train()
    assert not torch.equal(prefix(x, mask).key, prefix(x, mask).key)
    never = build(dropout=0).train()
    assert torch.equal(never(x, mask).key, never(x, mask).key)


def test_repr() -> None:
    assert str(build()) == (
        "GraphPrefix(6, 20, num_layers=2, num_tokens=4, rank=3, scale='sum', "
        "scope='causal', gate='none', pool=True, rotary=False)"
    )


@pytest.mark.parametrize(
    ('argument', 'value'),
    [
        ('scale', 'max'),
        ('scope', 'item'),
        ('gate', 'sigmoid'),
        ('num_tokens', 0),
        ('rank', 0),
        ('hidden_channels', -1),
        ('dropout', 1.5),
    ],
)
def test_bad_arguments(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"'{argument}' needs.*got '?{value}"):
        GraphPrefix(C, H, L, **{argument: value})


def test_bad_shapes() -> None:
    x, mask = histories()
    prefix = build()
    with pytest.raises(ValueError, match=r"'x' and 'mask'.*\[B, T, 6\]"):
        prefix(x[..., :-1], mask)
    with pytest.raises(ValueError, match=r"'x' and 'mask'.*\[3, 6\]"):
        prefix(x, mask[:, :-1])


@pytest.mark.parametrize('pool', [True, False])
def test_a_rotation_is_taken_with_rotary_only(pool: bool) -> None:
    x, mask = histories()
    rotation = (torch.ones(P, 4), torch.zeros(P, 4))
    plain, rotary = build(pool=pool), build(pool=pool, rotary=True)
    assert plain(x, mask).rotation is None
    assert rotary(x, mask, rotation).rotation is rotation
    assert rotary.instruction(rotation).rotation is rotation
    for call in (lambda *args: rotary(x, mask, *args), rotary.instruction):
        with pytest.raises(ValueError, match=r"'rotation'.*got None with rotary=True"):
            call()
    with pytest.raises(ValueError, match=r"'rotation'.*with rotary=False"):
        plain(x, mask, rotation)
