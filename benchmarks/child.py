"""Child processes that stop when their parent does, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence


def start(
    module: str, arguments: Sequence[str], environ: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts ``python -m module``, which has to call :func:`follow_parent`."""
    return subprocess.Popen(
        [sys.executable, '-m', module, *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, **(environ or {})},
        start_new_session=True,  # the terminal interrupts the parent alone
    )


def follow_parent() -> None:
    """Ends this process as Ctrl-C does once its standard input is closed.

    The parent holds the other end, which the system closes with it, be it killed. A
    training then saves its state before it stops.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def finish(process: subprocess.Popen) -> int:
    """Waits for a child, on Ctrl-C until it has saved its state."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        stop(process)
        raise


def stop(process: subprocess.Popen) -> None:
    """Lets a child save what it has, and waits for it."""
    if process.poll() is None and process.stdin is not None:
        process.stdin.close()
    process.wait()


def kill(process: subprocess.Popen) -> None:
    """Ends a child at once, if it has not ended."""
    process.kill()
    process.communicate()
