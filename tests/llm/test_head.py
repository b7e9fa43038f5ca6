from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hellm_pyg.llm.head import ItemHead


def test_loss_hides_items_from_states():
    torch.manual_seed(0)
    head = ItemHead('tied', 8, 20, state_channels=6)
    x, state, target = torch.randn(3, 8), torch.randn(20, 6), torch.tensor([4, 5, 6])
    row, col = torch.tensor([0, 0, 2]), torch.tensor([1, 4, 7])
    scores = head(x, state).index_put((row[[0, 2]], col[[0, 2]]), -torch.tensor(1e9))
    expected = F.cross_entropy(scores, target)  # item 4 is the target of row 0
    torch.testing.assert_close(head.loss(x, target, state, (row, col)), expected)


def test_linear():
    head = ItemHead('linear', 8, 20)
    assert str(head) == "ItemHead('linear', 8, 20)"
    assert [name for name, _ in head.named_parameters()] == ['weight']
    x = torch.randn(3, 8)
    torch.testing.assert_close(head(x), x @ head.weight.t())
    assert head.weight.abs().max() <= 1 / math.sqrt(8)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.double])
def test_tied_in_another_type(dtype):
    head = ItemHead('tied', 8, 20, state_channels=6).to(dtype)
    x, state = torch.randn(3, 8), torch.randn(20, 6).to(dtype)
    expected = x @ head.query.weight.float().t() @ state.float().t() / math.sqrt(6)
    torch.testing.assert_close(head(x, state).float(), expected, rtol=0.02, atol=0.02)
    assert head.loss(x, torch.tensor([0, 5, 19]), state).isfinite()


def test_frozen_random_is_saved_but_not_trained():
    head = ItemHead('frozen_random', 8, 20)
    assert list(head.parameters()) == []
    assert list(head.state_dict()) == ['weight']
    assert 0.8 / math.sqrt(8) < head.weight.abs().max() <= 1 / math.sqrt(8)
    x = torch.randn(3, 8, requires_grad=True)
    head.loss(x, torch.tensor([0, 5, 19])).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize('adapter_channels', [None, 4])
def test_tied(adapter_channels):
    torch.manual_seed(1)
    head = ItemHead('tied', 8, 20, state_channels=6, adapter_channels=adapter_channels)
    torch.nn.init.normal_(head.bias)
    x, state = torch.randn(3, 8), torch.randn(20, 6)
    vectors = state if adapter_channels is None else head.adapter(state)
    expected = torch.stack(
        [
            (head.query.weight @ x[t]) @ vectors.t() / math.sqrt(vectors.size(1))
            + head.bias
            for t in range(3)
        ]
    )
    torch.testing.assert_close(head(x, state), expected)
    target = torch.tensor([1, 2, 3])
    loss = head.loss(x, target, state)
    torch.testing.assert_close(loss, F.cross_entropy(expected, target))
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize('kind', ['linear', 'tied'])
def test_dropout_falls_on_the_states_of_training_alone(kind):
    torch.manual_seed(2)
    head = ItemHead(kind, 500, 4, state_channels=3, dropout=0.2)
    x, state, target = torch.randn(60, 500), torch.randn(4, 3), torch.randint(4, (60,))
    torch.manual_seed(3)
    loss = head.loss(x, target, state)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.2)
    assert 0.19 < float((dropped == 0).float().mean()) < 0.21
    head.eval()
    torch.testing.assert_close(loss, F.cross_entropy(head(dropped, state), target))
    expected = F.cross_entropy(head(x, state), target)
    torch.testing.assert_close(head.loss(x, target, state), expected)


def test_scores_stay_fp32_under_autocast():
    head = ItemHead('tied', 8, 20, state_channels=6, adapter_channels=4)
    x, state = torch.randn(3, 8), torch.randn(20, 6)
    plain = head(x, state)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = head(x.bfloat16().float(), state)
        torch.testing.assert_close(head(x, state), plain, rtol=0, atol=0)
    assert out.dtype == torch.float32


def gradient(loss: torch.Tensor, head: ItemHead) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(head.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def test_loss_under_autocast_lowers_only_the_adapter():
    torch.manual_seed(2)
    head = ItemHead('tied', 8, 200, state_channels=6, adapter_channels=16)
    x, state, target = torch.randn(50, 8), torch.randn(200, 6), torch.arange(50)
    expected = head.loss(x, target, state)
    wanted = gradient(expected, head)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert head.adapter(state).dtype == torch.bfloat16
        loss = head.loss(x, target, state)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.01, rtol=0.0)
    assert (gradient(loss, head) - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'kind': 'softmax'}, "'kind' needs to be .*got 'softmax'"),
        ({'kind': 'tied'}, "'state_channels' .*got None"),
        ({'kind': 'linear', 'adapter_channels': 4}, "'adapter_channels' .*got 4"),
        ({'kind': 'tied', 'adapter_channels': 0}, "'adapter_channels' .*got 0"),
        ({'kind': 'linear', 'dropout': 1}, r"'dropout' .*\[0, 1\) \(got 1\)"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ItemHead(hidden_size=8, num_items=3, **kwargs)


def test_tied_head_needs_embeddings():
    head = ItemHead('tied', 8, 20, state_channels=6)
    with pytest.raises(ValueError, match="'state' is needed"):
        head(torch.randn(1, 8))
