import copy
import gc
import shutil
import sysconfig
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, HypergraphConv

from hellm_pyg.nn import LightHypergraphConv
from hellm_pyg.nn.conv import incidence
from hellm_pyg.nn.conv.light_hypergraph_conv import NORMALIZATIONS

try:
    from torch_sparse import SparseTensor
except ImportError:
    SparseTensor = None

sparse = [
    pytest.mark.sparse,
    pytest.mark.skipif(SparseTensor is None, reason='torch-sparse is not installed'),
]
FORMATS = [
    'index',
    'unsorted',
    'row',
    'col',
    'csr',
    'coo',
    pytest.param('sparse', marks=sparse),
]
CAN_BUILD = (
    shutil.which('gcc') is not None
    and Path(sysconfig.get_path('include'), 'Python.h').exists()
)
COMPILES_SUBCLASSES = pytest.mark.skipif(
    torch.__version__ < (2, 10), reason='needs torch 2.10'
)


def dense_operator(h: Tensor, w: Tensor, normalization: str) -> Tensor:
    """The explicit N x N matrix, straight from the formulas."""

    def inverse(degree: Tensor, power: float) -> Tensor:
        out = torch.zeros_like(degree)
        out[degree > 0] = degree[degree > 0] ** -power
        return torch.diag(out)

    if normalization == 'hgnn':
        d_v = inverse(h @ w, 0.5)
        return d_v @ h @ torch.diag(w) @ inverse(h.sum(0), 1) @ h.t() @ d_v
    if normalization == 'rw':
        d_v = inverse(h @ w, 1)
        return d_v @ h @ torch.diag(w) @ inverse(h.sum(0), 1) @ h.t()
    a = h @ torch.diag(w) @ h.t()
    if normalization == 'clique_sym':
        d_a = inverse(a.sum(1), 0.5)
        return d_a @ a @ d_a
    a = a - torch.diag(a.diag())
    return inverse(a.sum(1), 1) @ a


def to_format(index: Tensor, size: tuple[int, int], kind: str):
    if kind == 'index':
        return index
    if kind == 'unsorted':
        return EdgeIndex(index, sparse_size=size)
    if kind in ('row', 'col'):
        edge_index = EdgeIndex(index, sparse_size=size).sort_by(kind).values
        return edge_index.fill_cache_()
    if kind == 'csr':  # keeps duplicates
        edge_index = EdgeIndex(index, sparse_size=size).sort_by('row').values
        return edge_index.to_sparse_csr()
    if kind == 'coo':
        return torch.sparse_coo_tensor(index, torch.ones(index.size(1)), size)
    return SparseTensor(row=index[0], col=index[1], sparse_sizes=size)


def random_index(num_nodes: int, num_edges: int, nnz: int) -> Tensor:
    row = torch.randint(num_nodes, (nnz,))
    return torch.stack([row, torch.randint(num_edges, (nnz,))])


def incidence_matrix(index: Tensor, size: tuple[int, int]) -> Tensor:
    h = torch.zeros(size, dtype=torch.double)
    h[index[0], index[1]] = 1
    return h


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('kind', FORMATS)
@given(
    num_nodes=st.integers(1, 7),
    num_edges=st.integers(1, 9),
    nnz=st.integers(0, 20),
    weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=12, deadline=None)
def test_equals_dense(
    normalization: str,
    kind: str,
    num_nodes: int,
    num_edges: int,
    nnz: int,
    weighted: bool,
    seed: int,
) -> None:
    """Also for duplicates, empty hyperedges, isolated nodes and zero weights."""
    torch.manual_seed(seed)
    index, size = random_index(num_nodes, num_edges, nnz), (num_nodes, num_edges)
    x = torch.randn(num_nodes, 3, dtype=torch.double, requires_grad=True)
    weight = torch.rand(num_edges, dtype=torch.double)
    weight[torch.rand(num_edges) < 0.3] = 0
    weight = weight if weighted else torch.ones_like(weight)
    matrix = dense_operator(incidence_matrix(index, size), weight, normalization)

    conv = LightHypergraphConv(normalization)
    graph = to_format(index, size, kind)
    given_weight = weight if weighted else None
    out = conv(x, graph, given_weight, num_edges=num_edges)
    torch.testing.assert_close(out, matrix @ x)
    torch.testing.assert_close(conv(x, graph, given_weight), out)
    target = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * target).sum(), x)
    torch.testing.assert_close(grad, matrix.t() @ target)


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('kind', FORMATS)
def test_weights_get_gradients(kind: str, normalization: str) -> None:
    """Also through the degrees; a weight of 0 may hold a node's whole degree."""
    torch.manual_seed(1)
    index, size = random_index(6, 5, 14), (6, 5)
    h, graph = incidence_matrix(index, size), to_format(index, size, kind)
    x = torch.randn(6, 2, dtype=torch.double)
    weight = (torch.rand(5, dtype=torch.double) + 0.1).requires_grad_()
    target = torch.randn(6, 2, dtype=torch.double)

    conv = LightHypergraphConv(normalization)
    out = conv(x, graph, weight)
    (grad,) = torch.autograd.grad((out * target).sum(), weight)
    expected = dense_operator(h, weight, normalization) @ x
    (want,) = torch.autograd.grad((expected * target).sum(), weight)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(grad, want)

    weight = torch.zeros(5, dtype=torch.double, requires_grad=True)
    conv(x, graph, weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('kind', ['index', 'csr'])
def test_gradcheck(kind: str, normalization: str) -> None:
    torch.manual_seed(2)
    index = random_index(4, 3, 8)
    conv, graph = LightHypergraphConv(normalization), to_format(index, (4, 3), kind)
    x = torch.randn(4, 2, dtype=torch.double, requires_grad=True)
    weight = (torch.rand(3, dtype=torch.double) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: conv(x, graph, w), (x, weight))


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_memberships_of_a_sparse_matrix(normalization: str) -> None:
    h = torch.rand(6, 4) * (torch.rand(6, 4) < 0.6)
    x, w = torch.randn(6, 3).double(), torch.rand(4).double()
    out = LightHypergraphConv(normalization)(x, h.to_sparse_csr(), w)
    expected = dense_operator(h.double(), w, normalization) @ x
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_released_operators() -> None:
    """Closed forms of the two matrices that the released code builds."""
    torch.manual_seed(3)
    index, size = random_index(20, 12, 60), (20, 12)
    h, eye = incidence_matrix(index, size), torch.eye(20).double()
    users = LightHypergraphConv('clique_rw')(eye, index)
    assert users.diag().abs().sum() == 0
    shared = (h @ h.t()).fill_diagonal_(0)
    torch.testing.assert_close(users.sum(1), (shared.sum(1) > 0).double())

    items = LightHypergraphConv('clique_sym')(eye, index)
    torch.testing.assert_close(items, items.t())


@pytest.mark.parametrize('weighted', [True, False])
def test_equals_dhg(weighted: bool) -> None:
    dhg = pytest.importorskip('dhg', reason='dhg is not installed')
    torch.manual_seed(4)
    edges = [(0, 1, 2), (1, 3), (3, 4, 5, 0), (2, 5)]
    weight = [0.5, 2.0, 1.0, 0.3] if weighted else [1.0] * 4
    graph = dhg.Hypergraph(6, edges, e_weight=weight)
    index = torch.tensor([[n, e] for e in range(4) for n in edges[e]]).t()
    x = torch.randn(6, 3)
    out = LightHypergraphConv('hgnn')(x, index, torch.tensor(weight))
    torch.testing.assert_close(out, graph.smoothing_with_HGNN(x))


def test_equals_pyg_without_weights() -> None:
    """``HypergraphConv`` leaves weights out of its messages, so only there."""
    index, x = random_index(8, 5, 20).unique(dim=1), torch.randn(8, 4)
    conv = HypergraphConv(4, 4, bias=False)
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(4))
    out = LightHypergraphConv('rw')(x, index)
    torch.testing.assert_close(out, conv(x, index))


@pytest.mark.parametrize('kind', FORMATS)
def test_nodes_that_share_nothing_get_zeros(kind: str) -> None:
    """Even where 32 bits would leave a remainder instead of a degree of zero."""
    index = torch.stack([torch.arange(30) // 10, torch.arange(30)])
    weight, x = torch.rand(30), torch.randn(4, 2, requires_grad=True)
    graph = to_format(index, (4, 30), kind)
    out = LightHypergraphConv('clique_rw')(x, graph, weight)
    assert out.abs().sum() == 0
    out.sum().backward()
    assert x.grad.abs().sum() == 0


@pytest.mark.parametrize('kind', FORMATS)
def test_no_entries_at_all(kind: str) -> None:
    empty = torch.empty(2, 0, dtype=torch.long)
    for normalization in NORMALIZATIONS:
        conv = LightHypergraphConv(normalization)
        graph = to_format(empty, (3, 2), kind)
        assert conv(torch.ones(3, 2), graph).tolist() == [[0, 0]] * 3
        assert conv(torch.ones(3, 2), graph, torch.ones(2)).abs().sum() == 0
        graph = to_format(empty, (0, 0), kind)
        assert conv(torch.ones(0, 2), graph).shape == (0, 2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', FORMATS)
def test_half_precision_sums_in_32_bits(kind: str, dtype: torch.dtype) -> None:
    num_nodes = 3000  # one hyperedge holds them all: beyond the range of float16
    index = torch.stack([torch.arange(num_nodes), torch.zeros(num_nodes).long()])
    x = torch.randn(num_nodes, 2, dtype=dtype)
    conv, graph = LightHypergraphConv(), to_format(index, (num_nodes, 1), kind)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x, graph)
    assert out.dtype == dtype
    exact = conv(x.double(), graph).to(dtype)
    torch.testing.assert_close(out, exact, atol=1e-6, rtol=0.01)


@pytest.mark.parametrize('kind', FORMATS)
def test_permutation_equivariance(kind: str) -> None:
    index, x = random_index(7, 4, 15), torch.randn(7, 3)
    nodes, edges = torch.randperm(7), torch.randperm(4)
    permuted = torch.stack([nodes[index[0]], edges[index[1]]])
    y = torch.empty_like(x)
    y[nodes] = x
    for normalization in NORMALIZATIONS:
        conv = LightHypergraphConv(normalization)
        out = conv(x, to_format(index, (7, 4), kind))
        again = conv(y, to_format(permuted, (7, 4), kind))
        torch.testing.assert_close(again[nodes], out)


def test_inside_hetero_conv() -> None:
    index = random_index(5, 4, 9)
    x = {'user': torch.randn(5, 3), 'item': torch.randn(4, 3)}
    users, items = ('user', 'shares', 'user'), ('item', 'shares', 'item')
    conv = HeteroConv(
        {users: LightHypergraphConv('clique_rw'), items: LightHypergraphConv('hgnn')}
    )
    edge_index = {
        users: EdgeIndex(index, sparse_size=(5, 4)),
        items: index.flip([0]),
    }
    out = conv(x, edge_index, num_edges_dict={items: 5})
    expected = LightHypergraphConv('clique_rw')(x['user'], index)
    torch.testing.assert_close(out['user'], expected)
    expected = LightHypergraphConv('hgnn')(x['item'], index.flip([0]), num_edges=5)
    torch.testing.assert_close(out['item'], expected)


def test_on_hetero_data() -> None:
    data = HeteroData()
    data['user'].x, data['item'].num_nodes = torch.randn(5, 3), 4
    edge_index = EdgeIndex(
        [[0, 0, 1, 3, 3], [1, 0, 1, 2, 1]], sparse_size=(5, 4), sort_order='row'
    )
    data['user', 'interacts', 'item'].edge_index = edge_index.fill_cache_()
    conv = LightHypergraphConv('clique_rw')
    out = conv(data['user'].x, data['user', 'interacts', 'item'].edge_index)
    h = incidence_matrix(edge_index.as_tensor(), (5, 4))
    expected = dense_operator(h, torch.ones(4).double(), 'clique_rw')
    torch.testing.assert_close(out, expected.float() @ data['user'].x)
    twin = copy.copy(data).to('cpu')
    again = conv(twin['user'].x, twin['user', 'interacts', 'item'].edge_index)
    torch.testing.assert_close(again, out)


@pytest.mark.parametrize(
    ('kind', 'num_edges', 'weighted'),
    [
        ('index', 4, False),
        ('index', None, False),
        ('index', None, True),
        pytest.param('row', None, True, marks=COMPILES_SUBCLASSES),
    ],
)
@pytest.mark.parametrize('normalization', ['hgnn', 'clique_rw'])
def test_compiles_to_a_full_graph(
    normalization: str, kind: str, num_edges: int | None, weighted: bool
) -> None:
    torch.compiler.reset()
    conv = LightHypergraphConv(normalization)
    index = random_index(6, 4, 12)
    index[:, 0] = index[:, 1]
    graph = to_format(index, (6, 4), kind)
    x, weight = torch.randn(6, 3, requires_grad=True), torch.rand(4)
    args = (x, graph, weight if weighted else None, num_edges)
    out = torch.compile(conv, backend='aot_eager', fullgraph=True)(*args)
    torch.testing.assert_close(out, conv(*args))
    got = torch.autograd.grad(out.pow(2).sum(), x)[0]
    want = torch.autograd.grad(conv(*args).pow(2).sum(), x)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(not CAN_BUILD, reason='needs a C++ compiler and Python.h')
def test_compiles_with_inductor() -> None:
    torch.compiler.reset()
    conv, index = LightHypergraphConv('clique_rw'), random_index(6, 4, 12)
    x = torch.randn(6, 3, requires_grad=True)
    out = torch.compile(conv, fullgraph=True)(x, index)
    torch.testing.assert_close(out, conv(x, index))
    (got,) = torch.autograd.grad(out.pow(2).sum(), x)
    (want,) = torch.autograd.grad(conv(x, index).pow(2).sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize('kind', ['csr', pytest.param('sparse', marks=sparse)])
def test_matrices_run_inside_a_compiled_model(kind: str) -> None:
    torch.compiler.reset()
    conv, graph = LightHypergraphConv(), to_format(random_index(6, 4, 12), (6, 4), kind)
    x = torch.randn(6, 3, requires_grad=True)

    def model(x: Tensor) -> Tensor:
        return conv(x * 2, graph).relu()

    out = torch.compile(model, backend='eager')(x)
    torch.testing.assert_close(out, model(x))
    out.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['index', 'row', 'csr'])
def test_can_be_differentiated_twice(kind: str) -> None:
    graph, conv = random_index(4, 3, 8), LightHypergraphConv()
    if kind != 'index':
        graph = to_format(graph, (4, 3), kind)
    x = torch.randn(4, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: conv(x, graph).pow(2), x)


@pytest.mark.parametrize('kind', ['row', 'csr'])
def test_matrices_are_built_once_for_all_layers(kind: str, monkeypatch) -> None:
    built = []
    build = incidence.Incidence.__init__
    monkeypatch.setattr(
        incidence.Incidence,
        '__init__',
        lambda self, *args: built.append(1) or build(self, *args),
    )
    graph, x = to_format(random_index(5, 4, 9), (5, 4), kind), torch.randn(5, 2)
    for _ in range(2):
        for normalization in NORMALIZATIONS:
            LightHypergraphConv(normalization)(x, graph)
            LightHypergraphConv(normalization)(x, graph, torch.rand(4))
    assert len(built) == 1


def test_changed_graphs_are_not_stale() -> None:
    conv, x = LightHypergraphConv('clique_sym'), torch.eye(3)

    index = torch.tensor([[0, 1], [0, 0]])
    graph = EdgeIndex(index, sparse_size=(3, 2), sort_order='row')
    before = conv(x, graph)
    index[0, 1] = 2  # through the tensor below
    torch.testing.assert_close(conv(x, graph), conv(x, index))
    assert not torch.equal(conv(x, graph), before)
    graph.as_tensor()[0, 1] = 1
    torch.testing.assert_close(conv(x, graph), before)
    graph.fill_(0)  # through the index itself
    torch.testing.assert_close(conv(x, graph), torch.diag(torch.tensor([1.0, 0, 0])))

    matrix = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).to_sparse_csr()
    before = conv(x, matrix)
    matrix.values()[1] = 3
    torch.testing.assert_close(conv(x, matrix), conv(x, matrix.clone()))
    assert not torch.equal(conv(x, matrix), before)


@pytest.mark.sparse
@pytest.mark.skipif(SparseTensor is None, reason='torch-sparse is not installed')
def test_changed_sparse_tensor_is_not_stale() -> None:
    conv, x = LightHypergraphConv('clique_sym'), torch.eye(3)
    graph = to_format(torch.tensor([[0, 1], [0, 0]]), (3, 2), 'sparse')
    before = conv(x, graph)
    graph.set_value_(torch.tensor([1.0, 3.0]), layout='coo')
    again = conv(x, graph)
    assert not torch.equal(again, before)
    graph.storage.value()[1] = 5
    assert not torch.equal(conv(x, graph), again)


@pytest.mark.parametrize('kind', ['row', 'csr', pytest.param('sparse', marks=sparse)])
def test_graphs_are_not_kept_alive(kind: str) -> None:
    graph = to_format(random_index(5, 4, 9), (5, 4), kind)
    LightHypergraphConv()(torch.randn(5, 2), graph)
    alive, known = weakref.ref(graph), len(incidence._KNOWN)
    del graph
    gc.collect()
    assert alive() is None
    assert len(incidence._KNOWN) == known - 1


@pytest.mark.parametrize('weight', [None, torch.rand(4, dtype=torch.double)])
def test_graph_first_seen_in_inference_mode_can_be_trained_on(
    weight: Tensor | None,
) -> None:
    conv = LightHypergraphConv('clique_rw')
    x = torch.ones(5, 2, dtype=torch.double, requires_grad=True)
    graph = to_format(random_index(5, 4, 9), (5, 4), 'row')
    with torch.inference_mode():
        before = conv(x, graph, weight)
        own = to_format(random_index(5, 4, 9), (5, 4), 'row')
        conv(x, own, weight)
    out = conv(x, graph, weight)
    torch.testing.assert_close(out.detach(), before)
    out.sum().backward()
    conv(x, own, weight).sum().backward()


def test_number_of_hyperedges_may_change_between_calls() -> None:
    graph = EdgeIndex([[0, 1, 2], [0, 0, 1]])
    conv, x = LightHypergraphConv(), torch.randn(3, 2)
    out = conv(x, graph)
    for weight in (torch.ones(2), torch.ones(5)):
        torch.testing.assert_close(conv(x, graph, weight), out)
    more = conv(torch.cat([x, x]), EdgeIndex([[0, 1, 2], [0, 0, 1]]))
    torch.testing.assert_close(more[:3], out)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('kind', ['index', 'row', 'csr'])
def test_on_cuda(kind: str) -> None:
    index, x = random_index(7, 4, 15), torch.randn(7, 3)
    graph = to_format(index, (7, 4), kind)
    weight = torch.rand(4)
    for normalization in NORMALIZATIONS:
        conv = LightHypergraphConv(normalization)
        for w in (None, weight):
            moved = None if w is None else w.cuda()
            y = x.cuda().requires_grad_()
            out = conv(y, graph.cuda(), moved)
            torch.testing.assert_close(out.cpu(), conv(x, graph, w))
            out.sum().backward()
            assert y.grad.isfinite().all()
    if kind == 'index':
        torch.cuda.set_sync_debug_mode('error')
        try:
            conv(y, graph.cuda().clone())
        finally:
            torch.cuda.set_sync_debug_mode('default')


def test_repr_and_state() -> None:
    conv = LightHypergraphConv()
    assert str(conv) == "LightHypergraphConv(normalization='hgnn')"
    assert conv.state_dict() == {}
    assert copy.deepcopy(conv).normalization == 'hgnn'


@pytest.mark.parametrize('kind', FORMATS)
def test_refuses_bad_input(kind: str) -> None:
    index, size = torch.tensor([[0, 1, 2], [0, 0, 1]]), (3, 2)
    conv, x = LightHypergraphConv(), torch.randn(3, 2)
    graph = to_format(index, size, kind)
    with pytest.raises(ValueError, match=r"'hyperedge_weight' .*>= 0 \(got .*-1\.0"):
        conv(x, graph, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"'hyperedge_weight' .*nan"):
        conv(x, graph, torch.tensor([1.0, float('nan')]))
    with pytest.raises(ValueError, match=r"'hyperedge_weight' .*\[2\] \(got \[3\]\)"):
        conv(x, graph, torch.ones(3), num_edges=2)
    with pytest.raises(ValueError, match=r"'hyperedge_weight' .*got \[2, 1\]"):
        conv(x, graph, torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"'num_edges'|\[0, 1\), the number of hyper"):
        conv(x, graph, num_edges=1)
    with pytest.raises(ValueError, match=r"'x' needs one row|\[0, 2\), the number of"):
        conv(x[:2], graph)
    with pytest.raises(ValueError, match=r"'x' needs to hold floats.*\[3\]"):
        conv(x[:, 0], graph)
    with pytest.raises(ValueError, match=r"'x' needs to hold floats.*int64"):
        conv(x.long(), graph)


def test_refuses_bad_graphs() -> None:
    conv, x = LightHypergraphConv(), torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"'hyperedge_index' .*\[3, 2\]"):
        conv(x, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"'hyperedge_index' .*float32"):
        conv(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"'hyperedge_index\[0\]'.*\[0, 3\).*-1 to 1"):
        conv(x, torch.tensor([[-1, 1], [0, 0]]))
    with pytest.raises(ValueError, match=r"'hyperedge_index\[1\]'.*from -2"):
        conv(x, torch.tensor([[0, 1], [0, -2]]))
    matrix = torch.tensor([[1.0, 0], [-1, 0], [0, 1]]).to_sparse_csr()
    with pytest.raises(ValueError, match=r'finite values >= 0 .*from -1'):
        conv(x, matrix)
    learned = torch.eye(3).to_sparse_csr().requires_grad_()
    with pytest.raises(ValueError, match=r"'num_edges' must not be .* \(got -1\)"):
        LightHypergraphConv()(torch.randn(3, 2), torch.empty(2, 0).long(), num_edges=-1)
    with pytest.raises(ValueError, match="learn 'hyperedge_weight' instead"):
        conv(x, learned)


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'normalization' .*'hgnn'.*got 'sym'"):
        LightHypergraphConv('sym')
    with pytest.raises(ValueError, match=r"'aggr' .*got 'mean'"):
        LightHypergraphConv(aggr='mean')
