from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hellm_pyg.llm.head import ItemHead, cross_entropy


def inputs(n=7, k=5, i=11, dtype=torch.float32):
    torch.manual_seed(0)
    query = torch.randn(n, k, dtype=dtype, requires_grad=True)
    vectors = torch.randn(i, k, dtype=dtype, requires_grad=True)
    bias = torch.randn(i, dtype=dtype, requires_grad=True)
    return query, vectors, bias, torch.randint(i, (n,))


@pytest.mark.parametrize('chunk_size', [1, 3, 7, 100, None])
@pytest.mark.parametrize('with_bias', [True, False])
def test_cross_entropy_equals_the_dense_form(chunk_size, with_bias):
    query, vectors, bias, target = inputs()
    bias = bias if with_bias else None
    leaves = [query, vectors] + ([bias] if with_bias else [])
    logits = query @ vectors.t() + (bias if with_bias else 0)
    expected = F.cross_entropy(logits, target)
    out = cross_entropy(query, vectors, bias, target, chunk_size)
    torch.testing.assert_close(out, expected)
    ours = torch.autograd.grad(3 * out, leaves)
    theirs = torch.autograd.grad(3 * expected, leaves)
    torch.testing.assert_close(ours, theirs)


def test_cross_entropy_gradcheck():
    query, vectors, bias, target = inputs(dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda q, v, b: cross_entropy(q, v, b, target, 2), (query, vectors, bias)
    )


def test_cross_entropy_of_frozen_vectors_and_without_grad():
    query, vectors, _, target = inputs()
    out = cross_entropy(query, vectors.detach(), None, target)
    out.backward()
    assert query.grad is not None
    with torch.no_grad():
        again = cross_entropy(query, vectors, None, target)
    assert not again.requires_grad
    torch.testing.assert_close(again, out.detach())


def test_cross_entropy_never_holds_all_logits():
    n, k, i = 64, 4, 1000
    query = torch.randn(n, k, requires_grad=True)
    vectors = torch.randn(i, k, requires_grad=True)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    with Watch():
        cross_entropy(query, vectors, None, torch.zeros(n).long(), 8).backward()
    assert max(sizes) == 8 * i


def test_cross_entropy_under_autocast_keeps_fp32_logits():
    query, vectors, bias, target = inputs(n=200, k=32, i=50)
    expected = F.cross_entropy(query @ vectors.t() + bias, target)
    wanted = torch.autograd.grad(expected, (query, vectors, bias))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = cross_entropy(query, vectors, bias, target)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out, (query, vectors, bias))
    for ours, theirs in zip(grads, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_linear():
    head = ItemHead('linear', 8, 20)
    assert str(head) == "ItemHead('linear', 8, 20)"
    assert [name for name, _ in head.named_parameters()] == ['weight']
    x = torch.randn(3, 8)
    torch.testing.assert_close(head(x), x @ head.weight.t())
    assert head.weight.abs().max() <= 1 / math.sqrt(8)


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


def test_scores_stay_fp32_under_autocast():
    head = ItemHead('tied', 8, 20, state_channels=6, adapter_channels=4)
    x, state = torch.randn(3, 8), torch.randn(20, 6)
    plain = head(x, state)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = head(x.bfloat16().float(), state)
        torch.testing.assert_close(head(x, state), plain, rtol=0, atol=0)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'kind': 'softmax'}, "'kind' needs to be .*got 'softmax'"),
        ({'kind': 'tied'}, "'state_channels' .*got None"),
        ({'kind': 'linear', 'adapter_channels': 4}, "'adapter_channels' .*got 4"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ItemHead(hidden_size=8, num_items=3, **kwargs)


def test_tied_head_needs_embeddings():
    head = ItemHead('tied', 8, 20, state_channels=6)
    with pytest.raises(ValueError, match="'state' is needed"):
        head(torch.randn(1, 8))
