"""Keeping the peak of loading near what the weights take, where the C library (glibc) would not.

A tensor that is read, converted and freed leaves a hole in the heap that the next one, because of
its alignment, just does not fit into. So a bfloat16 model was loaded as float32 with a quarter more
than it takes, and an int8 one with six times as much. Large blocks that come from the system go
back to it when they are freed.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_FROM_SYSTEM_BYTES = 64 << 10
_USUAL_BYTES = 32 << 20
"""What glibc itself arrives at in a program that has freed blocks of this size; see mallopt(3)."""

_lock = threading.Lock()
_loading = 0


@contextmanager
def weights_apart() -> Iterator[None]:
    """While it lasts, every block of 64 KiB or more is the system's own; in all threads."""
    global _loading
    with _lock:
        _loading += 1
        _set(_M_MMAP_THRESHOLD, _FROM_SYSTEM_BYTES)
    try:
        yield
    finally:
        with _lock:
            _loading -= 1
            if not _loading:
                _set(_M_MMAP_THRESHOLD, _USUAL_BYTES)
                _set(_M_TRIM_THRESHOLD, 2 * _USUAL_BYTES)


def give_back_freed() -> None:
    """Gives freed memory back to the system; takes milliseconds.

    A freed weight leaves a hole in the heap that the next, equally large one just does not fit
    into, because of its alignment; and what a library has freed stays with the process.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library


def _set(option: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(option, value)
    except (AttributeError, OSError, TypeError):
        return  # another C library
