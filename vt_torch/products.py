"""Products of the rows of a tile with hidden states on a CPU, and which kernel is fastest on this one.

A CPU has several kernels for the same product: oneDNN's, MKL's and PyTorch's own, for 16-bit rows or for rows
that are widened to float32 first. Which one is fastest depends on the processor, its instructions, the number
of threads and the number of positions. So the kernels are timed on a few megabytes once per process. Their
logits differ in the last place at most; verification settles the near ties that this makes
(:mod:`vt_core.decode.rounding`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import torch
import torch.nn.functional as F

from vt_core.store.layout import TableSpec
from vt_torch.device import DTYPES, multiplies

#: Logits ``[k, n]`` of rows ``[n, columns]`` for hidden states ``[k, columns]`` and a bias ``[n]`` or None,
#: all of one float type.
Multiply = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]

#: Numbers of positions for which kernels are timed.
POSITIONS = (1, 2, 4, 8, 16, 32)
#: Bytes of stored rows on which they are timed, another part of the pool each time: rows of a table come from
#: memory too. In a cache another kernel is the fastest (2 positions in float32: 20 ms instead of 5).
_SAMPLE_BYTES, _POOL_BYTES = 4 << 20, 40 << 20
#: Sizes of the buffer into which rows are widened. It should stay in a cache, and hold enough rows for one
#: product to be efficient.
_WIDE_BYTES = (1 << 20, 2 << 20, 4 << 20)
#: Rows that are not converted are multiplied where they are mapped. Smaller tiles take longer (4 MiB: 6 %),
#: and larger ones stay in memory.
_TILE_BYTES = 16 << 20
#: Timings of a kernel, unless its first one is this many times the best so far.
_REPEATS, _HOPELESS = 3, 1.5
#: A multiple of positions for which MKL's product is faster than for a few positions less.
_GOOD_COUNT = 16
#: Settings of the two caches of compiled kernels, oneDNN's and that of PyTorch around it, which keeps kernels
#: that the other has dropped.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
#: Kernels in each of them: those of a step, some ten, and of drafts of up to 16 tokens. 64 were as fast as
#: the 1,024 without a setting, and with none at all steps took 1.5 times as long (Gemma 3 270M).
_KEPT_KERNELS = 128


def bound_kernels() -> None:
    """Keep fewer of the kernels that are compiled for each shape of a product, some 0.6 MB each.

    Each new length of a prompt brings six or seven, so a server would end with 600 MB of them. Only works
    before the first product of the process. Numbers that the user has set stay.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(_KEPT_KERNELS))


class Buffers:
    """Memory into which tiles are converted, one buffer for each float type, used again for every tile."""

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, torch.Tensor] = {}

    def convert(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows in another float type, valid until the next call; the rows themselves if they have it."""
        if rows.dtype == dtype:
            return rows
        kept = self._kept.get(dtype)
        if kept is None or len(kept) < len(rows):
            kept = self._kept[dtype] = torch.empty(rows.shape, dtype=dtype)
        return kept[: len(rows)].copy_(rows)


@dataclass(frozen=True)
class Kernel:
    """A way to multiply a tile."""

    multiply: Multiply
    dtype: torch.dtype  #: float type of the rows, the hidden states and the bias
    tile_bytes: int  #: size of a tile in this type

    def tile_rows(self, columns: int) -> int:
        """Rows of a tile."""
        return max(1, self.tile_bytes // (columns * self.dtype.itemsize))

    def logits(
        self, rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None, buffers: Buffers
    ) -> torch.Tensor:
        """Logits ``[k, n]`` of stored rows ``[n, columns]``, in the float type of ``hidden``: the run's."""
        # The whole head holds rows in the run's float type, and a wider one must not hold more digits.
        converted = buffers.convert(buffers.convert(rows, hidden.dtype), self.dtype)
        offset = None if bias is None else bias.to(self.dtype)
        return self.multiply(converted, hidden.to(self.dtype), offset).to(hidden.dtype)


def linear(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product that a linear layer computes."""
    return F.linear(hidden, rows, bias)


def rows_first(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same, transposed. One column is repeated: MKL takes twice as long for one as for two."""
    columns = (hidden if len(hidden) > 1 else hidden.repeat(2, 1)).T
    logits = rows @ columns if bias is None else torch.addmm(bias[:, None], rows, columns)
    return logits.T[: len(hidden)]


def padded(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`rows_first` for a round number of positions: with Gemma's head MKL took 132 ms for 15 positions
    and 54 for 16.
    """
    more = F.pad(hidden, (0, 0, 0, -len(hidden) % _GOOD_COUNT))
    return rows_first(rows, more, bias)[: len(hidden)]


def without_onednn(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """:func:`linear` by PyTorch's own kernel. For one position in bfloat16 it takes half of oneDNN's time."""
    with onednn_off():
        return F.linear(hidden, rows, bias)


@contextmanager
def onednn_off() -> Iterator[None]:
    """Let PyTorch multiply with its own kernels. Holds for the whole process."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


def candidates(positions: int, dtype: torch.dtype) -> list[tuple[Multiply, torch.dtype]]:
    """Kernels for so many positions in a run of some float type, and the float type of their products."""
    wide = torch.float32
    kernels: list[tuple[Multiply, torch.dtype]] = []
    if dtype != wide:
        # Without instructions for the type, many positions are multiplied one by one.
        if positions <= 2:
            kernels.append((without_onednn, dtype))
        if positions <= 2 or multiplies(dtype):
            kernels.append((linear, dtype))
        if positions > 2 and multiplies(dtype):
            kernels.append((rows_first, dtype))
    kernels += [(linear, wide), (rows_first, wide)]
    if positions % _GOOD_COUNT == 0:
        kernels[-1] = (padded, wide)
    return kernels


def kernels_of(spec: TableSpec, dtype: torch.dtype) -> dict[int, Kernel]:
    """The fastest kernels for the rows of a table in a run of some float type, by number of positions.

    They are timed at the first call, which takes some 50 ms.
    """
    return _timed(spec.columns, DTYPES[spec.dtype], dtype, torch.get_num_threads())


@lru_cache
def _timed(columns: int, stored: torch.dtype, dtype: torch.dtype, threads: int) -> dict[int, Kernel]:
    stride = columns * stored.itemsize
    pool = torch.ones(max(1, _POOL_BYTES // stride), columns, dtype=stored)
    samples = cycle(pool.split(max(1, _SAMPLE_BYTES // stride)))
    with torch.inference_mode():
        wide_bytes = _TILE_BYTES
        if stored != torch.float32:
            sizes = [Kernel(linear, torch.float32, size) for size in _WIDE_BYTES]
            wide_bytes = _fastest(sizes, samples, torch.ones(8, columns, dtype=dtype)).tile_bytes
        found = {}
        for positions in POSITIONS:
            tried = [
                Kernel(multiply, kind, _TILE_BYTES if kind == stored == dtype else wide_bytes)
                for multiply, kind in candidates(positions, dtype)
            ]
            found[positions] = _fastest(tried, samples, torch.ones(positions, columns, dtype=dtype))
    return found


def at_least(kernels: dict[int, Kernel], positions: int) -> Kernel:
    """The kernel for so many positions."""
    return next((kernel for count, kernel in kernels.items() if count >= positions), kernels[POSITIONS[-1]])


def _fastest(kernels: list[Kernel], samples: Iterator[torch.Tensor], hidden: torch.Tensor) -> Kernel:
    buffers, best, fastest = Buffers(), float("inf"), kernels[0]
    for kernel in kernels:
        seconds, size = float("inf"), kernel.tile_rows(hidden.shape[1])
        for _ in range(1 + _REPEATS):  # the first time, memory is allocated and kernels are compiled
            rows = next(samples)
            started = time.perf_counter()
            for start in range(0, len(rows), size):
                kernel.logits(rows[start : start + size], hidden, None, buffers).amax(dim=1)
            seconds = min(seconds, (time.perf_counter() - started) / len(rows))
            if seconds > _HOPELESS * best:
                break
        if seconds < best:
            best, fastest = seconds, kernel
    return fastest
