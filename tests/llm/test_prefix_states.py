from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hellm_pyg.llm.prefix_states import PrefixStates

B, T, P, L, H = 3, 6, 5, 2, 48


def states(length: int = T) -> PrefixStates:
    torch.manual_seed(0)
    return PrefixStates(
        key=torch.randn(B, length, H),
        value=torch.randn(B, length, H),
        key_bias=torch.randn(L, P, H),
        value_bias=torch.randn(L, P, H),
        key_gain=torch.rand(H),
        value_gain=torch.rand(H),
    )


@pytest.mark.parametrize('length', [1, T])
def test_scales_are_those_of_the_slots_that_are_never_built(length: int) -> None:
    prefix = states(length)
    for side in ('key', 'value'):
        state, bias = getattr(prefix, side), getattr(prefix, f'{side}_bias')
        for layer in range(L):
            slot = bias[layer] + state[:, :, None]  # [B, T, P, H]
            scale = getattr(prefix, f'{side}_scale')[layer]
            expected = (slot.square().mean(-1) + prefix.eps).rsqrt()
            torch.testing.assert_close(scale, expected)


def test_a_bias_that_cancels_the_state_gives_no_nan() -> None:
    prefix = states()
    opposite = -prefix.key[0, 0].expand(L, P, H)
    scale = replace(prefix, key_bias=opposite).key_scale[0]
    assert scale.isfinite().all()
    assert float(scale.max()) <= prefix.eps**-0.5 * (1 + 1e-6)


def test_bad_input() -> None:
    prefix = states()
    with pytest.raises(ValueError, match="'key' and 'value'"):
        replace(prefix, key=prefix.key[0])
    with pytest.raises(ValueError, match="'key_bias' and 'value_bias'"):
        replace(prefix, value_bias=prefix.value_bias[:1])
    with pytest.raises(ValueError, match=r"'rotation'.*5 slots \(got 4\)"):
        replace(prefix, rotation=(torch.ones(4, 8), torch.zeros(4, 8)))
