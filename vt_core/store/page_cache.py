"""What the system's page cache holds of a mapped file."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes that one entry of a page table can map, and the alignment of such a large page in the file.
LARGE_PAGE = 2 << 20


def cached_pages(mapping: mmap.mmap) -> npt.NDArray[np.bool_] | None:
    """Whether each page of a mapped file is in the page cache; None where the system does not tell.

    Linux says so to the owner of a file, and calls every page cached to others.
    """
    ask = _mincore()
    if ask is None or not len(mapping):
        return None
    view = np.frombuffer(mapping, np.uint8)
    pages = np.empty(-(-len(view) // mmap.PAGESIZE), np.uint8)
    if ask(view.ctypes.data, len(view), pages.ctypes.data) != 0:
        return None
    return (pages & 1).astype(bool)


def sparse_regions(cached: npt.NDArray[np.bool_], region: int) -> Iterator[tuple[int, int]]:
    """First page, and page after the last, of each region of so many pages of which some are cached, but
    fewer than half.
    """
    for start in range(0, len(cached), region):
        pages = cached[start : start + region]
        if 0 < 2 * np.count_nonzero(pages) < len(pages):
            yield start, start + len(pages)


@cache
def _mincore() -> Any:
    """The C library's function; None where there is none."""
    try:
        function = ctypes.CDLL(None).mincore
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return function
