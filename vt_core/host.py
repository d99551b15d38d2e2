"""Memory and cores of this process."""

from __future__ import annotations

import ctypes
import os


def trim_heap() -> None:
    """Return freed memory to the system. Does nothing where the C library cannot (only glibc can).

    After reading Gemma 3's tokenizer of 262,144 tokens, 294 MB are resident and 112 MB in use.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def usable_cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
