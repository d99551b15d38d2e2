"""Memory that was freed but that the C library still holds."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc); elsewhere nothing happens.

    Reading Gemma 3's tokenizer of 262,144 tokens leaves 294 MB resident, of which 112 are in use.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
