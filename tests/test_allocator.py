from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from hellm_pyg.allocator import keep_freed_memory

COUNT_MAPPED = """
import re, sys, torch
from pathlib import Path
from hellm_pyg.allocator import keep_freed_memory
if sys.argv[1] == 'kept':
    assert keep_freed_memory()
def size():
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmRSS:\\s+(\\d+)', status)[1])

small = [torch.ones(2**22) for _ in range(16)]  # 16 MiB each
before = size()
del small
print((before - size()) // 2**10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a setting of glibc')
def test_freed_memory_stays() -> None:
    released = {}
    for kind in ('default', 'kept'):
        call = [sys.executable, '-c', COUNT_MAPPED, kind]
        found = subprocess.run(call, check=True, capture_output=True, text=True)
        released[kind] = int(found.stdout)
    assert released['default'] > 128
    assert released['kept'] < 64


def test_windows_has_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: None) -> None:
        raise TypeError("argument 'name' is None")

    with monkeypatch.context() as patch:
        patch.setattr(os, 'name', 'nt')
        patch.setattr(ctypes, 'CDLL', refused)
        assert not keep_freed_memory()
