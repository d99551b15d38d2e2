"""Weights as PyTorch's 8-bit and 4-bit kernels take them: how floats become integers and scales.

8 bits: a row is integers from -127 to 127 times one scale. 4 bits: the columns of a row are in groups, a
weight is ``(number - 8) * scale + zero`` with a scale and a zero for each group, and a byte holds two
numbers, the first in its upper half. Scales and zeros of layers are bfloat16, the type in which the kernels
take them, and the integers are those that fit the rounded scales. Scales of the head are float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vt_core.files.dtypes import from_float32, to_float32

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

#: How the weights of a model directory are stored: bits of the linear layers. The head has 8 bits in both.
MODES = ("int8", "int4")
#: Float type of the scales and zeros of layers.
SCALES = "bfloat16"
#: Columns that share a scale and a zero: the first that divides a row is used.
GROUPS = (64, 32)
#: The 4-bit kernels take rows by the sixteen.
ROWS = 16


def group_of(rows: int, columns: int) -> int | None:
    """Columns that share a scale in a 4-bit layer of this shape; None where the 4-bit kernels cannot run it,
    and it gets 8 bits.
    """
    return next((size for size in GROUPS if columns % size == 0 and rows % ROWS == 0), None)


def row_scales(values: Floats, dtype: str = SCALES) -> Floats:
    """The scale of each of the rows ``values [n, columns]``, as the float type `dtype` holds it."""
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    return _rounded(np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny), dtype)


def quantize_rows(values: Floats, scales: Floats) -> npt.NDArray[np.int8]:
    """Integers ``[n, columns]`` that stand for ``values`` with one scale per row."""
    numbers = values / scales[:, None]
    return np.clip(np.rint(numbers, out=numbers), -127, 127, out=numbers).astype(np.int8)


def group_scales(values: Floats, group: int) -> tuple[Floats, Floats]:
    """Scales and zeros ``[n, columns / group]`` of rows ``[n, columns]`` in 4 bits."""
    groups = values.reshape(len(values), -1, group)
    least, most = groups.min(axis=-1), groups.max(axis=-1)
    scales = _rounded(np.maximum((most - least) / np.float32(15), np.finfo(np.float32).tiny), SCALES)
    return scales, _rounded(least + 8 * scales, SCALES)


def quantize_groups(values: Floats, scales: Floats, zeros: Floats) -> Bytes:
    """Pairs of 4-bit numbers ``[n, columns / 2]`` that stand for ``values`` with these scales and zeros."""
    numbers = values.reshape(*scales.shape, -1) - zeros[..., None]
    numbers /= scales[..., None]
    numbers += 8
    whole = np.clip(np.rint(numbers, out=numbers), 0, 15, out=numbers).astype(np.uint8).reshape(values.shape)
    pairs: Bytes = (whole[:, ::2] << 4 | whole[:, 1::2]).astype(np.uint8, copy=False)
    return pairs


def _rounded(values: Floats, dtype: str) -> Floats:
    return to_float32(from_float32(values, dtype), dtype)
