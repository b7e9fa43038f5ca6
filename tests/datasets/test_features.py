import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hellm_pyg.datasets.features import items_hash, read_features

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(path, rows=4, modality='image'):
    return read_features(path, modality, range(rows), "the items of 'items.csv'")


@pytest.fixture
def matrix(tmp_path):
    def write(x):
        np.save(tmp_path / 'x.npy', x)
        return tmp_path / 'x.npy'

    return write


@pytest.mark.parametrize('dtype', ['f2', 'f4', '>f4', 'f8', 'i1', 'i8', 'u1', '?'])
def test_number_types(matrix, dtype):
    x = read(matrix(X.astype(dtype)))
    assert x.dtype == torch.float32
    assert x.tolist() == X.astype(dtype).astype(np.float32).tolist()


def test_missing_rows_stay_nan(matrix):
    x = X.copy()
    x[1] = np.nan
    out = read(matrix(x))
    assert out.isnan().all(dim=1).tolist() == [False, True, False, False]


def test_safetensors_by_name_or_alone_with_mask(tmp_path):
    x = torch.from_numpy(X)
    path = tmp_path / 'x.safetensors'
    save_file({'only': x.bfloat16()}, path)
    assert torch.equal(read(path), x)
    save_file({'image': x, 'text': x + 1}, path)
    assert torch.equal(read(path, modality='text'), x + 1)
    mask = torch.tensor([True, True, False, True])
    for kind in (torch.bool, torch.uint8):
        save_file({'image': x, 'mask': mask.to(kind)}, path)
        out = read(path)
        assert out[2].isnan().all()
        assert torch.equal(out[mask], x[mask])


def test_safetensors_without_the_modality(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file({'a': torch.ones(4, 3), 'b': torch.ones(4, 3)}, path)
    with pytest.raises(ValueError, match=r"named 'image'.*got \['a', 'b'\]"):
        read(path)
    save_file({'image': torch.ones(4, 3), 'mask': torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"'mask' of shape \(4,\) .got \(3,\)"):
        read(path)


def test_wrong_number_of_rows(matrix):
    with pytest.raises(ValueError, match=r"x.npy.*needs 5 rows.*'items.csv'.*got 4"):
        read(matrix(X), rows=5)


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        (np.inf, 'finite values .got Inf in row 2'),
        (-np.inf, 'finite values .got Inf in row 2'),
        (np.nan, r'NaN throughout .got 1 NaN of 3 values in row 2, from 0'),
        (1e300, 'finite values .got Inf in row 2'),
    ],
)
def test_bad_values(matrix, value, match):
    x = X.astype(np.float64)
    x[2, 1] = value
    with pytest.raises(ValueError, match=match):
        read(matrix(x))


@pytest.mark.parametrize(
    ('x', 'match'),
    [
        (np.full((4, 3), np.nan), 'no row with features'),
        (np.ones(4), r'needs a matrix .got shape \(4,\)'),
        (np.ones((4, 0)), r'needs a matrix .got shape \(4, 0\)'),
        (np.array([['a']] * 4), 'needs numbers'),
        (np.array([[{}]] * 4, dtype=object), 'cannot be read'),
    ],
)
def test_bad_matrices(matrix, x, match):
    with pytest.raises(ValueError, match=match):
        read(matrix(x))


@pytest.mark.parametrize('name', ['x.npy', 'x.safetensors'])
def test_damaged_file(tmp_path, name):
    (tmp_path / name).write_bytes(b'not a matrix')
    with pytest.raises(ValueError, match=f"'features' of 'image'.*{name}.*cannot be"):
        read(tmp_path / name)


def test_a_header_tells_whose_rows_they_are(tmp_path):
    path = tmp_path / 'x.safetensors'
    for items, fits in ((['0', '1', '2', '3'], True), (['0', '2', '1', '3'], False)):
        header = {'features': json.dumps({'items': items_hash(items)})}
        save_file({'image': torch.from_numpy(X)}, path, header)
        if fits:
            assert torch.equal(read(path), torch.from_numpy(X))
        else:
            with pytest.raises(ValueError, match=r'another catalogue, or .* order'):
                read(path)


@pytest.mark.parametrize('header', ['clip', '["a"]', 'NaN'])
def test_a_header_of_another_program_says_nothing(tmp_path, header):
    path = tmp_path / 'x.safetensors'
    save_file({'image': torch.from_numpy(X)}, path, {'features': header})
    assert torch.equal(read(path), torch.from_numpy(X))


def test_an_archive_of_arrays_is_no_matrix(tmp_path):
    np.savez(tmp_path / 'x.npz', x=X)
    (tmp_path / 'x.npz').rename(tmp_path / 'x.npy')
    with pytest.raises(ValueError, match=r"'image'.*x\.npy.*needs one matrix .*npz"):
        read(tmp_path / 'x.npy')
