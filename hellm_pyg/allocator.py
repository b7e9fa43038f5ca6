"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# The largest that glibc takes: larger blocks go back to the system at once.
LARGEST_KEPT = 2**25
MOST_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks of up to 32 MiB, 2 GiB of them at most.

    By default it gives the tables of a step back to the system, which has to map and to
    clear them anew in the next. How much time that takes is measured by
    ``benchmarks/speed/allocator.py``. The setting is the whole process's, therefore
    for commands and scripts to make, never for a library.

    Returns:
        Whether it was set; other C libraries have no such thing.
    """
    if os.name == 'nt':  # where no library is that of the whole process
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    return bool(
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(TRIM_THRESHOLD, MOST_KEPT)
    )
