"""Where a number comes from: versions, commit, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = (
    'hellm_pyg',
    'torch',
    'torch-geometric',
    'torch-sparse',
    'torch-scatter',
    'transformers',
    'peft',
    'accelerate',
    'bitsandbytes',
    'faiss-cpu',
    'faiss-gpu',
    'numpy',
    'pyarrow',
    'safetensors',
    'tensorboard',
)
# Where a checkout keeps what was measured.
RESULTS = 'benchmarks/results'


def versions() -> dict[str, str]:
    """Versions of the packages that are installed, without importing them."""
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from.

    ``'+changes'`` follows if tracked files differ from it, results that were measured
    since aside. :obj:`None` for an installed package, even if its environment lies
    inside some other checkout.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ['git', '-C', str(package), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return run.stdout.strip()

    try:
        git('ls-files', '--error-unmatch', '__init__.py')
        code = (':(top)', f':(top,exclude){RESULTS}')
        changed = git('status', '--porcelain', '--untracked-files=no', *code)
        return git('rev-parse', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory(device: torch.device) -> dict[str, int]:
    """Largest memory of this process so far, and of its accelerator, in bytes."""
    peak = {}
    if sys.platform != 'win32':
        import resource

        unit = 1 if sys.platform == 'darwin' else 1024
        peak['process'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == 'cuda':
        peak['cuda'] = torch.cuda.max_memory_allocated(device)
    return peak
