from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hellm_pyg import doctor
from hellm_pyg.training import record
from tests.devices import pretended_gpus


def test_versions_name_what_is_there_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, 'PACKAGES', ('torch', 'no-such-package'))
    found = doctor.versions()
    assert torch.__version__.startswith(found['torch'])  # not always with '+cu124'
    assert found['no-such-package'] == '-'
    assert list(found) == ['python', 'torch', 'no-such-package']


def test_devices_begin_with_the_cpu() -> None:
    found = doctor.devices()
    assert 'cores' in found['cpu']
    assert len(found) >= 1 + torch.cuda.device_count()


def test_every_device_is_asked_for_its_own_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretended_gpus(monkeypatch, bf16=[True, False])
    found = doctor.devices()
    assert found['cuda:0'] == 'gpu 0, 1.0 GiB, bf16'
    assert found['cuda:1'] == 'gpu 1, 1.0 GiB, no bf16'


def test_sparse_paths_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        if name == 'torch_sparse':
            raise OSError('undefined symbol: x')
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(doctor.importlib, 'import_module', broken)
    found = doctor.sparse_paths()
    assert found['torch CSR'].startswith('live')
    assert found['EdgeIndex'].startswith('live')
    assert found['torch-sparse'] == 'broken: undefined symbol: x'
    assert found['torch-scatter'] == 'not installed (optional)'


def test_a_dead_path_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, 'to_sparse_csr', lambda x: 2 * x)
    assert doctor.sparse_paths()['torch CSR'].startswith('broken')


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc/self/maps')
def test_openmp_sees_the_runtimes_of_the_process() -> None:
    pytest.importorskip('faiss')
    found = doctor.openmp()
    paths = [path for name, path in found.items() if name.startswith('runtime')]
    assert paths
    assert all(Path(path).is_file() for path in paths)
    assert f'torch {torch.get_num_threads()}' in found['threads']


def test_openmp_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'faiss', None)
    assert list(doctor.openmp()) == ['faiss']


@pytest.mark.parametrize(
    ('libraries', 'threads', 'expected'),
    [
        (['/a/libgomp.so.1'], (2, 2), 'torch and FAISS agree'),
        (['/a/libgomp.so.1', '/b/libgomp-x.so'], (2, 2), '2 copies of libgomp'),
        (['/a/libomp.dylib', '/b/libomp.dylib'], (2, 2), 'may abort'),
        (['/a/libiomp5.so', '/b/libgomp.so'], (2, 2), 'KMP_DUPLICATE_LIB_OK'),
        (['/a/libgomp.so.1'], (1, 8), 'torch uses 1 threads and FAISS 8'),
    ],
)
def test_verdict(libraries: list[str], threads: tuple[int, int], expected: str) -> None:
    assert expected in doctor.openmp_verdict(libraries, *threads)


@pytest.mark.parametrize(
    ('count', 'text'),
    [(0, '0 B'), (1023, '1023 B'), (1536, '1.5 KiB'), (3 * 2**40, '3.0 TiB')],
)
def test_format_bytes(count: int, text: str) -> None:
    assert doctor.format_bytes(count) == text


def test_report_needs_no_language_model_packages() -> None:
    code = (
        'import sys; sys.modules["transformers"] = sys.modules["peft"] = None\n'
        'from hellm_pyg import doctor\n'
        'print(list(doctor.report()))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'sparse paths' in run.stdout
