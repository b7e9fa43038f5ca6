"""A virtual environment for each peer, made when it is first needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / 'requirements'


def environment(name: str, folder: Path) -> Path:
    """Returns the interpreter of an environment, which is made unless it is there.

    It is made anew when its requirements have changed.

    Args:
        name: Stem of a file in ``benchmarks/peers/requirements``.
        folder: Where the environments lie.
    """
    requirements = REQUIREMENTS / f'{name}.txt'
    venv = folder / name
    stamp = venv / 'requirements.txt'
    bin_folder = 'Scripts' if os.name == 'nt' else 'bin'
    python = venv / bin_folder / 'python'
    if stamp.is_file() and stamp.read_text() == requirements.read_text():
        return python
    print(f'making {venv} of {requirements}', flush=True)
    subprocess.run([sys.executable, '-m', 'venv', '--clear', str(venv)], check=True)
    pip = [str(python), '-m', 'pip', 'install', '--quiet', '-r', str(requirements)]
    subprocess.run([*pip, '--disable-pip-version-check'], check=True)
    shutil.copy(requirements, stamp)  # last: what was broken off is made again
    return python
