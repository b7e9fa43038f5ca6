import pytest
import torch
from torch import Tensor

from hellm_pyg.nn.spmm import spmm


def random_matrix(num_rows: int, num_cols: int, dtype=torch.float32) -> Tensor:
    matrix = torch.randn(num_rows, num_cols, dtype=dtype)
    return matrix * (torch.rand(num_rows, num_cols) < 0.3)


def pair(dense: Tensor) -> tuple[Tensor, Tensor]:
    return dense.to_sparse_csr(), dense.t().contiguous().to_sparse_csr()


@pytest.mark.parametrize('size', [(7, 5), (5, 7), (1, 1), (4, 0), (0, 4)])
def test_spmm_equals_dense(size: tuple[int, int]) -> None:
    dense = random_matrix(*size)
    x = torch.randn(size[1], 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()

    out, expected = spmm(*pair(dense), x), dense @ y
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize('width', [1, 7, 64, 130])
def test_spmm_has_the_bits_of_a_sum_over_the_entries(width: int) -> None:
    dense = random_matrix(40, 30)
    dense[3] = 0
    matrix, transposed = pair(dense)
    x = torch.randn(30, 2 * width)
    x[0], x[1] = torch.nan, torch.inf
    indices = matrix.crow_indices().int(), matrix.col_indices().int()
    short = torch.sparse_csr_tensor(*indices, matrix.values(), matrix.shape)
    for features in (
        x[:, :width].contiguous(),
        x[:, ::2],
        x[:, :width].t().clone().t(),
    ):
        expected = torch.sparse.mm(matrix, features.contiguous(), 'sum')
        for own in (matrix, short):
            out = spmm(own, transposed, features)
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_spmm_gradcheck() -> None:
    matrix, transposed = pair(random_matrix(6, 4, torch.double))
    x = torch.randn(4, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: spmm(matrix, transposed, x), x)


def test_spmm_backward_is_the_other_matrix() -> None:
    matrix, _ = pair(random_matrix(6, 4))
    other, transposed = random_matrix(6, 4), torch.empty(0)
    transposed = other.t().contiguous().to_sparse_csr()
    x = torch.randn(4, 2, requires_grad=True)
    spmm(matrix, transposed, x).sum().backward()
    torch.testing.assert_close(x.grad, other.t() @ torch.ones(6, 2))


def test_spmm_can_be_differentiated_twice() -> None:
    matrix, transposed = pair(random_matrix(6, 4, torch.double))
    x = torch.randn(4, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: spmm(matrix, transposed, x).pow(2), x)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_spmm_keeps_the_type_of_the_features(dtype: torch.dtype) -> None:
    dense = random_matrix(8, 300)
    x = torch.randn(300, 3, dtype=dtype, requires_grad=True)
    out = spmm(*pair(dense), x)
    assert out.dtype == dtype
    exact = dense.double() @ x.detach().double()
    torch.testing.assert_close(out, exact.to(dtype))  # rounded only once
    out.sum().backward()
    assert x.grad.dtype == dtype


def test_spmm_ignores_autocast() -> None:
    dense, x = random_matrix(6, 4), torch.randn(4, 2, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = spmm(*pair(dense), x)
        mixed = spmm(*pair(dense), x.bfloat16())
    assert out.dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(out, dense @ x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(0).view(-1, 1).expand(4, 2))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_spmm_on_cuda(dtype: torch.dtype) -> None:
    dense = random_matrix(30, 20)
    x = torch.randn(20, 3, device='cuda', dtype=dtype, requires_grad=True)
    matrix, transposed = (m.cuda() for m in pair(dense))
    with torch.autocast('cuda', dtype=torch.bfloat16):
        out = spmm(matrix, transposed, x)
    expected = (dense.double() @ x.detach().cpu().double()).to(dtype)
    torch.testing.assert_close(out.cpu(), expected)
    out.sum().backward()
    assert x.grad.dtype == dtype


def test_spmm_refuses_bad_input() -> None:
    matrix, transposed = pair(random_matrix(6, 4))
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"'matrix' needs to be a torch CSR.*strided"):
        spmm(matrix.to_dense(), transposed, x)
    with pytest.raises(ValueError, match=r"'transposed' needs to be a torch CSR"):
        spmm(matrix, transposed.to_dense(), x)
    with pytest.raises(ValueError, match=r"'transposed' .* shape \[4, 6\].*got \[6, 4"):
        spmm(matrix, matrix, x)
    with pytest.raises(ValueError, match=r"'x' .* \[4, F\].*\[6, 2\]"):
        spmm(matrix, transposed, torch.randn(6, 2))
    with pytest.raises(ValueError, match=r"'x' needs to hold floats.*int64"):
        spmm(matrix, transposed, torch.ones(4, 2, dtype=torch.long))
    learned = matrix.detach().requires_grad_()
    with pytest.raises(ValueError, match=r"'matrix' needs to be a constant"):
        spmm(learned, transposed, x)
