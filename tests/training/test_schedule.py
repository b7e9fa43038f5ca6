"""Learning rates against transformers', and who is decayed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from hellm_pyg.config import TrainConfig
from hellm_pyg.training import build_optimizer, learning_rate, parameter_groups

RELEASED = TrainConfig(
    epochs=25, lr=3e-4, min_lr=5e-6, warmup_epochs=1, schedule='cosine'
)


def test_the_released_schedule() -> None:
    assert learning_rate(RELEASED, 0) == 0
    assert learning_rate(RELEASED, 0.5) == pytest.approx(1.5e-4)
    assert learning_rate(RELEASED, 1) == pytest.approx(3e-4)
    assert learning_rate(RELEASED, 13) == pytest.approx((3e-4 + 5e-6) / 2)
    assert learning_rate(RELEASED, 25) == pytest.approx(5e-6)


def test_cosine_is_that_of_transformers() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    steps = 8
    theirs = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, steps, 25 * steps, min_lr=5e-6
    )
    for step in range(25 * steps):
        assert learning_rate(RELEASED, step / steps) == pytest.approx(
            theirs.get_last_lr()[0], rel=1e-6, abs=1e-12
        )
        optimizer.step()
        theirs.step()


def test_other_schedules() -> None:
    constant = TrainConfig(epochs=10, lr=0.1, schedule='constant', warmup_epochs=2)
    assert [learning_rate(constant, e) for e in (0, 1, 2, 9.9)] == [0, 0.05, 0.1, 0.1]
    linear = TrainConfig(epochs=10, lr=0.1, min_lr=0.02, schedule='linear')
    assert learning_rate(linear, 0) == pytest.approx(0.1)
    assert learning_rate(linear, 5) == pytest.approx(0.06)
    assert learning_rate(linear, 10) == pytest.approx(0.02)
    decaying = TrainConfig(epochs=100, lr=0.1, schedule='exponential')
    assert learning_rate(decaying, 0.99) == pytest.approx(0.1)
    assert learning_rate(decaying, 50.5) == pytest.approx(0.096)


@given(
    schedule=st.sampled_from(['constant', 'linear', 'cosine', 'exponential']),
    epochs=st.integers(1, 30),
    warmup=st.floats(0, 40),
    part=st.floats(0, 1),
)
def test_rates_stay_in_bounds(
    schedule: str, epochs: int, warmup: float, part: float
) -> None:
    config = TrainConfig(epochs=epochs, lr=0.1, schedule=schedule, warmup_epochs=warmup)
    assert 0 <= learning_rate(config, epochs * part) <= 0.1 * (1 + 1e-9)


def model() -> torch.nn.Module:
    layers = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)
    )
    layers[0].weight.requires_grad = False
    return layers


def test_parameter_groups() -> None:
    layers = model()
    decayed, spared = parameter_groups(layers, 0.1)
    assert decayed['params'] == [layers[1].weight]
    assert decayed['weight_decay'] == 0.1
    assert [p.dim() for p in spared['params']] == [1, 1, 1]
    assert spared['weight_decay'] == 0
    (everything,) = parameter_groups(layers, 0.1, 'all')
    assert len(everything['params']) == 4
    assert everything['weight_decay'] == 0.1
    for parameter in layers.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match=r"'model' .* none in Sequential"):
        parameter_groups(layers, 0.1)


def test_the_optimizer() -> None:
    config = TrainConfig(optimizer='adamw', lr=0.01, betas=(0.8, 0.9))
    optimizer = build_optimizer(model(), config)
    assert type(optimizer) is torch.optim.AdamW
    assert {g['betas'] for g in optimizer.param_groups} == {(0.8, 0.9)}
    assert type(build_optimizer(model(), TrainConfig())) is torch.optim.Adam
