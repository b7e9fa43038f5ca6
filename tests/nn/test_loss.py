import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hellm_pyg.nn import ContrastiveLoss


def naive(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.5,
    intra_view: bool = True,
    anchors: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    """The definition, with every similarity in one matrix."""
    everyone = torch.arange(len(z1))
    anchors = everyone if anchors is None else anchors
    negatives = everyone if negatives is None else negatives
    a, b = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    inter, intra = ((a @ y.t() / temperature).exp() for y in (b, a))
    drawn = torch.zeros(len(z1), len(z1), dtype=z1.dtype)
    drawn[:, negatives] = 1
    drawn.fill_diagonal_(0)
    total = inter.diag() + (inter * drawn).sum(1)
    if intra_view:
        total = total + (intra * drawn).sum(1)
    return -(inter.diag() / total).log()[anchors].mean()


def views(num_nodes: int, channels: int = 4, dtype=torch.double) -> list[Tensor]:
    return [
        torch.randn(num_nodes, channels, dtype=dtype, requires_grad=True)
        for _ in range(2)
    ]


def assert_same(loss: Tensor, expected: Tensor, z: list[Tensor]) -> None:
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    got = torch.autograd.grad(loss, z)
    want = torch.autograd.grad(expected, z, retain_graph=True)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


@given(
    num_nodes=st.integers(1, 9),
    chunk_size=st.integers(1, 12),
    temperature=st.sampled_from([0.05, 0.3, 2.0]),
    intra_view=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_full_equals_naive(
    num_nodes: int, chunk_size: int, temperature: float, intra_view: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    z = views(num_nodes)
    loss = ContrastiveLoss(
        temperature, intra_view=intra_view, scope='full', chunk_size=chunk_size
    )
    expected = naive(*z, temperature, intra_view)
    if num_nodes > 1:
        assert_same(loss(*z), expected, z)
    assert_same(loss(*z, index=torch.tensor([0])), expected, z)  # not read


def test_symmetric_averages_both_ways() -> None:
    z = views(6)
    expected = (naive(*z) + naive(*z[::-1])) / 2
    assert (naive(*z) - naive(*z[::-1])).abs() > 1e-3
    assert_same(ContrastiveLoss(symmetric=True, scope='full')(*z), expected, z)
    sampled = ContrastiveLoss(symmetric=True, scope=6)
    assert_same(sampled(*z), expected, z)


def test_batch_contrasts_its_distinct_nodes() -> None:
    z, index = views(8), torch.tensor([5, 1, 5, 6, 1])
    distinct = torch.tensor([1, 5, 6])
    expected = naive(*z, anchors=distinct, negatives=distinct)
    assert_same(ContrastiveLoss()(*z, index=index), expected, z)
    assert_same(ContrastiveLoss()(*z), naive(*z), z)


@pytest.mark.parametrize('intra_view', [True, False])
@pytest.mark.parametrize('count', [1, 3, 8, 50])
def test_sampled_negatives(count: int, intra_view: bool, monkeypatch) -> None:
    z, index = views(8), torch.tensor([5, 1, 5])
    drawn = torch.tensor([1, 4, 0, 7, 5, 2, 3, 6])
    monkeypatch.setattr(torch, 'randperm', lambda n, device: drawn)
    loss = ContrastiveLoss(scope=count, intra_view=intra_view, chunk_size=3)
    expected = naive(
        *z,
        intra_view=intra_view,
        anchors=torch.tensor([1, 5]),
        negatives=drawn[:count],
    )
    assert_same(loss(*z, index=index), expected, z)


def test_sampled_negatives_come_from_all_nodes_and_differ() -> None:
    z1, z2 = torch.eye(40, 40).double(), torch.eye(40, 40).double().requires_grad_()
    loss, index, hit = ContrastiveLoss(scope=10), torch.tensor([0]), torch.zeros(40)
    for _ in range(60):
        (grad,) = torch.autograd.grad(loss(z1 + 0.1, z2, index=index), z2)
        touched = grad.abs().sum(1) > 0
        assert touched[0]  # the positive, drawn or not
        assert touched.sum() in (10, 11)
        hit += touched
    assert hit.min() > 0


def test_golden_values() -> None:
    z = torch.randn(1, 4)
    for scope in ('full', 'batch', 3):
        assert ContrastiveLoss(scope=scope)(z, torch.randn(1, 4)) == 0
    for num_nodes, temperature in ((2, 0.5), (7, 0.3), (7, 1.0)):
        eye = torch.eye(num_nodes).double()
        x = math.exp(1 / temperature)
        value = -math.log(x / (x + 2 * (num_nodes - 1)))
        loss = ContrastiveLoss(temperature, scope='full')(eye, 3 * eye)
        assert float(loss) == pytest.approx(value, abs=1e-12)


def test_random_embeddings_lie_at_the_floor() -> None:
    torch.manual_seed(0)
    num_nodes, temperature = 2000, 0.5
    z = torch.randn(num_nodes, 64)
    loss = ContrastiveLoss(temperature, scope='full')(z, z)
    floor = math.log(2 * num_nodes) - 1 / temperature
    assert float(loss) == pytest.approx(floor, abs=0.05)


def test_does_not_depend_on_order_or_scale_of_nodes() -> None:
    z1, z2 = views(9)
    perm, scale = torch.randperm(9), torch.rand(9, 1).double() + 0.1
    loss = ContrastiveLoss(scope='full', chunk_size=4)
    torch.testing.assert_close(loss(z1[perm], scale * z2[perm]), loss(z1, scale * z2))
    torch.testing.assert_close(loss(scale * z1, z2), loss(z1, z2))


@pytest.mark.parametrize('scope', ['full', 'batch'])
def test_gradcheck(scope: str) -> None:
    torch.manual_seed(0)
    loss = ContrastiveLoss(0.4, symmetric=True, scope=scope, chunk_size=2)
    index = torch.tensor([3, 0, 4])
    assert torch.autograd.gradcheck(lambda *z: loss(*z, index=index), views(5, 3))


@pytest.mark.parametrize('wrong', [-1, 5])
def test_nodes_that_there_are_not_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"'index' needs to lie in \[0, 5\)"):
        ContrastiveLoss()(*views(5), index=torch.tensor([0, wrong]))


def test_cannot_be_differentiated_twice() -> None:
    z = views(5)
    loss = ContrastiveLoss(scope='full')(*z)
    grad = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match='only once'):
        grad[0].sum().backward()


def test_tiny_temperatures_stay_finite() -> None:
    z = [x.float().detach().requires_grad_() for x in views(6)]
    loss = ContrastiveLoss(1e-3, scope='full')(*z)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in z)


def test_zero_rows_have_no_direction_and_no_gradient() -> None:
    z1, z2 = (x.detach().clone() for x in views(5))
    z2[3] = 0
    z = [z1.requires_grad_(), z2.requires_grad_()]
    loss = ContrastiveLoss(scope='full')(*z)
    torch.testing.assert_close(loss, naive(*z))
    loss.backward()
    assert z2.grad[3].abs().sum() == 0
    assert z2.grad[[0, 1, 2, 4]].abs().sum(1).min() > 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_32_bits(dtype: torch.dtype) -> None:
    z = [x.to(dtype).detach().requires_grad_() for x in views(300, 8)]
    loss = ContrastiveLoss(scope='full')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = loss(*z)
        grads = torch.autograd.grad(out, z, retain_graph=True)
    assert out.dtype == torch.float32
    exact = loss(*(x.detach().double() for x in z))
    assert float(out.detach()) == pytest.approx(float(exact), abs=1e-5)
    out.backward()
    for x, grad in zip(z, grads, strict=True):
        assert x.grad.dtype == dtype
        assert torch.equal(x.grad, grad)


def test_no_square_matrix_is_held() -> None:
    num_nodes, chunk_size = 320, 16
    block = chunk_size * 2 * num_nodes

    class Held(TorchDispatchMode):
        """How many blocks live at once."""

        def __init__(self) -> None:
            super().__init__()
            self.known: list[weakref.ref[Tensor]] = []
            self.most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.numel() >= block:
                assert out.numel() == block
                self.known.append(weakref.ref(out))
                live = [ref() for ref in self.known]
                size = len({x.data_ptr() for x in live if x is not None})
                self.most = max(self.most, size)
            return out

    z = [torch.randn(num_nodes, 8, requires_grad=True) for _ in 'ab']
    with Held() as held:
        ContrastiveLoss(scope='full', chunk_size=chunk_size)(*z).backward()
    assert held.most == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('scope', ['full', 'batch', 100])
def test_on_cuda(scope: str | int) -> None:
    z, index = views(100), torch.arange(0, 100, 3)
    loss = ContrastiveLoss(scope=scope, chunk_size=32)
    out = loss(*(x.cuda() for x in z), index=index.cuda())
    assert_same(out.cpu(), loss(*z, index=index), z)


def test_repr() -> None:
    assert str(ContrastiveLoss(scope=1024)) == (
        'ContrastiveLoss(temperature=0.5, scope=1024, symmetric=False, intra_view=True)'
    )


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'temperature': 0.0}, r"'temperature' .*got 0\.0"),
        ({'temperature': float('nan')}, r"'temperature' .*got nan"),
        ({'scope': 'all'}, r"'scope' .*got 'all'"),
        ({'scope': 0}, r"'scope' .*got 0"),
        ({'scope': True}, r"'scope' .*got True"),
        ({'chunk_size': 0}, r"'chunk_size' .*got 0"),
    ],
)
def test_refuses_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss(**kwargs)


def test_refuses_bad_input() -> None:
    loss, z = ContrastiveLoss(), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r'same shape.*\[4, 3\] and \[5, 3\]'):
        loss(z, torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"'index' needs to be int64.*bool"):
        loss(z, z, index=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match='at least one node'):
        loss(z, z, index=torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match='at least one node'):
        loss(z[:0], z[:0])
