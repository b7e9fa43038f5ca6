"""What is installed, which fast paths are live, and what a run needs in memory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from hellm_pyg.precision import has_bf16


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter, ``'-'`` where absent."""
    from hellm_pyg.training import record

    return {**dict.fromkeys(('python', *record.PACKAGES), '-'), **record.versions()}


def devices() -> dict[str, str]:
    """Returns the devices that torch can compute on, beside their memory."""
    linux = sys.platform == 'linux'
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count()
    found = {'cpu': f'{cores} cores, {torch.get_num_threads()} torch threads'}
    if hasattr(os, 'sysconf'):
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        found['cpu'] += f', {format_bytes(memory)}'
    found['cpu'] += f', {_bf16("cpu")}'
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found[f'cuda:{index}'] = (
            f'{device.name}, {format_bytes(device.total_memory)}, '
            f'{_bf16(f"cuda:{index}")}'
        )
    if torch.backends.mps.is_available():
        found['mps'] = 'Apple GPU'
    return found


def _bf16(device: str) -> str:
    return 'bf16' if has_bf16(device) else 'no bf16'


def _torch_csr() -> str:
    eye = torch.eye(3)
    torch.testing.assert_close(eye.to_sparse_csr() @ eye, eye)
    return 'live (LightHypergraphConv, LightGCN)'


def _edge_index() -> str:
    from torch_geometric import EdgeIndex

    index = EdgeIndex(torch.tensor([[0, 1], [0, 1]]), sort_order='row')
    torch.testing.assert_close(index @ torch.eye(2), torch.eye(2))
    return 'live (caches its CSR and CSC form)'


def _extension(name: str) -> Callable[[], str]:
    def check() -> str:
        importlib.import_module(name)
        return 'live'

    return check


def sparse_paths() -> dict[str, str]:
    """Tries every sparse path on a tiny product and says which are live.

    The optional ones come with the extra ``sparse``; results do not depend on
    them.
    """
    checks = {
        'torch CSR': _torch_csr,
        'EdgeIndex': _edge_index,
        'torch-sparse': _extension('torch_sparse'),
        'torch-scatter': _extension('torch_scatter'),
        'pyg-lib': _extension('pyg_lib'),
    }
    found = {}
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                found[name] = check()
        except ModuleNotFoundError:
            found[name] = 'not installed (optional)'
        except Exception as error:
            # A binary of another torch fails in ways of its own (OSError,
            # undefined symbols): the doctor reports them all.
            found[name] = f'broken: {error}'
    return found


def _bundled(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    folders += [folder.parent / f'{package}_cpu.libs' for folder in folders]
    return [
        str(path)
        for folder in folders
        for path in sorted(folder.rglob('lib*omp*'))
        if re.match(r'lib(gomp|i?omp)', path.name)
    ]


def openmp() -> dict[str, str]:
    """Loads FAISS beside torch and looks at the OpenMP runtimes of the process.

    Two copies of GNU's ``libgomp`` live side by side, each with threads of its
    own; two of LLVM's or Intel's (macOS wheels) abort the process or hang.
    """
    try:
        import faiss
    except ImportError as error:
        return {'faiss': f'not importable: {error}'}
    maps = Path('/proc/self/maps')
    if maps.is_file():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if line}
        libraries = sorted(p for p in loaded if re.search(r'/lib(gomp|i?omp)[^/]*$', p))
    else:
        libraries = sorted({*_bundled('torch'), *_bundled('faiss')})
    threads = (torch.get_num_threads(), faiss.omp_get_max_threads())
    found = {f'runtime {i + 1}': path for i, path in enumerate(libraries)}
    found['threads'] = f'torch {threads[0]}, faiss {threads[1]}'
    found['verdict'] = openmp_verdict(libraries, *threads)
    return found


def openmp_verdict(libraries: list[str], torch_threads: int, faiss_threads: int) -> str:
    """Judges the OpenMP runtimes that one process holds.

    Args:
        libraries: Paths of the runtimes.
        torch_threads: Threads that torch uses.
        faiss_threads: Threads that FAISS uses.
    """
    advice = []
    names = [Path(path).name for path in libraries]
    clashing = [name for name in names if not name.startswith('libgomp')]
    if len(names) > 1 and clashing:
        advice.append(
            f'{len(names)} different runtimes ({", ".join(names)}) may abort or hang: '
            'set OMP_NUM_THREADS=1 while FAISS searches (do not set '
            'KMP_DUPLICATE_LIB_OK)'
        )
    elif len(names) > 1:
        advice.append(
            f'{len(names)} copies of libgomp: works; set OMP_WAIT_POLICY=PASSIVE, or '
            'idle threads of one spin on the cores of the other'
        )
    if torch_threads != faiss_threads:
        advice.append(
            f'torch uses {torch_threads} threads and FAISS {faiss_threads}: set '
            'OMP_NUM_THREADS'
        )
    return '; '.join(advice) or 'torch and FAISS agree'


def report() -> dict[str, dict[str, str]]:
    """Returns all checks, by section."""
    return {
        'versions': versions(),
        'devices': devices(),
        'sparse paths': sparse_paths(),
        'OpenMP': openmp(),
    }


def format_bytes(count: float) -> str:
    """Returns a number of bytes with a unit, as ``'1.5 GiB'``."""
    units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while count >= 1024 and len(units) > 1:
        count, units = count / 1024, units[1:]
    return f'{count:.0f} B' if units[0] == 'B' else f'{count:.1f} {units[0]}'
