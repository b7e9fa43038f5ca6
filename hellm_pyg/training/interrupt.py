"""Ctrl-C and SIGTERM, held back while a run must not stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Notes Ctrl-C or SIGTERM; Ctrl-C pressed again stops at once.

    SIGTERM often comes twice, to a whole group of processes and passed on by the first
    of them. Nothing is held back outside the main thread, where no handler can be set.
    """

    def __init__(self) -> None:
        self.pending = False
        self._at_once = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Notes interrupts instead of raising, as long as the block runs."""
        pressed = False

        def note(number: int, frame: Any) -> None:
            nonlocal pressed
            again = pressed and number == signal.SIGINT
            pressed = pressed or number == signal.SIGINT
            if again or self._at_once:
                raise KeyboardInterrupt
            self.pending = True

        self.pending = False
        former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            former = {
                number: signal.signal(number, note)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self, allowed: bool) -> Iterator[None]:
        """Raises at once within the block, if allowed."""
        self._at_once = allowed
        try:
            yield
        finally:
            self._at_once = False
