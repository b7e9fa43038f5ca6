"""A window's gradient is that of one large batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hellm_pyg.config import TrainConfig
from hellm_pyg.data import PairBatch
from hellm_pyg.training.processes import make_accelerator
from hellm_pyg.training.step import Stepper
from tests.devices import pretended_cpu
from tests.training.toy import ITEMS, USERS, Toy


def stepper(model: Any = None, **options: Any) -> Stepper:
    config = replace(TrainConfig(optimizer='adam'), **options)
    model = Toy().eval() if model is None else model
    return Stepper(model, None, config, make_accelerator())


def triples(count: int, seed: int = 0) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(USERS, (count,), generator=generator)
    items = torch.randint(ITEMS, (2, count), generator=generator)
    return PairBatch(user, items[0], items[1])


def parts(batch: PairBatch, sizes: list[int]) -> list[PairBatch]:
    split = [
        value.split(sizes) for value in (batch.user, batch.pos_item, batch.neg_item)
    ]
    return [PairBatch(*values) for values in zip(*split, strict=True)]


def gradients(of: Stepper) -> list[Tensor]:
    return [p.grad.clone() for p in of.trained]


class Plain(Toy):
    """Without what depends on the number of batches seen."""

    def loss(self, data: Any, batch: PairBatch) -> Tensor:
        value = super().loss(data, batch)
        self.mean.zero_()
        return value


def test_accumulation_equals_one_large_batch() -> None:
    batch = triples(30)
    whole, apart = stepper(Plain().eval()), stepper(Plain().eval())
    expected = whole.backward([batch])
    found = apart.backward(parts(batch, [16, 11, 3]))
    assert found.targets == expected.targets == 30
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    torch.testing.assert_close(found.norm, expected.norm)
    for ours, theirs in zip(gradients(apart), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_gradients_do_not_leak_into_the_next_step() -> None:
    one = stepper(Plain().eval())
    one.backward([triples(9)])
    first = gradients(one)
    one.backward([triples(9)])
    for ours, theirs in zip(gradients(one), first, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_whole_gradient_is_clipped() -> None:
    one = stepper(Plain().eval(), clip=0.01, accumulate=2)
    found = one.backward([triples(5, 1), triples(8, 2)])
    direction = gradients(one)
    assert found.norm > 0.01
    one.update(0.0, found.norm)
    total = torch.stack([g.norm() for g in gradients(one)]).norm()
    assert float(total) == pytest.approx(0.01, rel=1e-3)
    for ours, theirs in zip(gradients(one), direction, strict=True):
        torch.testing.assert_close(
            ours, theirs * float(0.01 / found.norm), rtol=1e-3, atol=1e-8
        )


def test_a_step_needs_a_target_somewhere() -> None:
    with pytest.raises(ValueError, match=r"'loader' .* targets"):
        stepper(Plain().eval()).backward([])


def test_bf16_is_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []

    class Matmul(Toy):
        def loss(self, data: Any, batch: PairBatch) -> Tensor:
            product = self.user[batch.user] @ self.item.t()
            kinds.append(product.dtype)
            return product.mean()

    for precision, has_bf16 in (
        ('bf16', False),
        ('auto', False),
        ('auto', True),
        ('fp32', True),
    ):
        pretended_cpu(monkeypatch, has_bf16)
        one = stepper(Matmul(), precision=precision)
        one.backward([triples(4)])
        assert one.trained[0].grad.dtype == torch.float32
        assert one.precision == ('bf16' if kinds[-1] == torch.bfloat16 else 'fp32')
    assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]


def test_bad_models_are_refused() -> None:
    class Lacking(torch.nn.Linear):
        def encode(self, data: Any) -> None: ...

        def loss(self, data: Any, batch: Any) -> None: ...

    with pytest.raises(ValueError, match='Lacking without score, on_epoch_start'):
        stepper(Lacking(1, 1))
    with pytest.raises(ValueError, match=r"'activation_checkpointing' .* Toy"):
        stepper(Toy(), activation_checkpointing=True)
    enabled = Toy()
    enabled.enable_activation_checkpointing = lambda: setattr(enabled, 'asked', True)
    stepper(enabled, activation_checkpointing=True)
    assert enabled.asked
