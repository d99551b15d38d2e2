"""What this process has of the machine that it runs on."""

from __future__ import annotations

import ctypes
import os


def trim_heap() -> None:
    """Return freed memory to the system, where the C library can (glibc); elsewhere nothing happens.

    Reading Gemma 3's tokenizer of 262,144 tokens leaves 294 MB resident, of which 112 are in use.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine has where it was bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
