"""Giving memory back to the system."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

__all__ = ["Tidy"]

TIDY_EVERY = 10.0
"""Seconds between two times that memory is given back."""


class Tidy:
    """Gives memory that was freed back to the system now and then, where the C library can (glibc).

    Prompts that are kept for reuse come and go between the large tensors of batches. What they leave behind
    is too small for the next batch, so without this a busy server would hold more than it uses.

    Cost: milliseconds, at most once in `TIDY_EVERY` seconds.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._trim = getattr(library, "malloc_trim", None)
        self._lock = threading.Lock()
        self._next = 0.0

    def __call__(self) -> None:
        """Does so if it was not done a moment ago."""
        if self._trim is None:
            return
        with self._lock:
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + TIDY_EVERY
        self._trim(0)
