"""Quantizing and dequantizing rows in MLX's affine format with numpy, bit by bit as `mx.quantize` does.

:mod:`vt_core.files.quantization` describes the format.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vt_core.files.dtypes import storage_dtype, to_float32
from vt_core.files.quantization import Quantization

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

#: Smallest scale, so that a group of equal values is not divided by zero.
_SMALLEST_SCALE = np.float32(1e-7)


def join_rows(words: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> Words:
    """Stored rows ``[n, columns]`` of packed words, scales and biases in the storage dtype."""
    parts = (np.ascontiguousarray(part).view(np.uint8) for part in (words, scales, biases))
    return np.concatenate(list(parts), axis=1).view("<u4")


def split_rows(rows: Words, how: Quantization) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of stored rows: words ``[n, words]``, scales and biases ``[n, groups]`` in the storage dtype."""
    values = how.row_values(rows.shape[1])
    words, groups = how.words_per_row(values), how.groups_per_row(values)
    floats = rows[:, words:].view(storage_dtype(how.dtype))
    return rows[:, :words], floats[:, :groups], floats[:, groups:]


def dequantize(rows: Words, how: Quantization) -> Floats:
    """Values ``[n, hidden]`` of stored rows, computed in float32."""
    words, *floats = split_rows(rows, how)
    scales, biases = (to_float32(part, how.dtype) for part in floats)
    return dequantize_groups(words, scales, biases, how.bits)


def dequantize_groups(words: np.ndarray, scales: Floats, biases: Floats, bits: int) -> Floats:
    """Values ``[n, hidden]`` of words ``[n, words]`` with scales and biases ``[n, groups]``."""
    values = unpack(words, bits)
    groups = values.reshape(*scales.shape, -1)
    groups *= scales[..., None]
    groups += biases[..., None]
    return values


def quantize(values: Floats, bits: int, group_size: int) -> tuple[Words, Floats, Floats]:
    """Words, scales and biases of ``values [n, hidden]``. Scales and biases are float32.

    The value of a group with the largest absolute value is represented exactly, and so is zero within the
    group's range.
    """
    groups = values.reshape(len(values), -1, group_size)
    scales, biases = scales_and_biases(groups, bits)
    integers = groups - biases[..., None]
    integers /= scales[..., None]
    np.clip(np.rint(integers, out=integers), 0, 2**bits - 1, out=integers)
    return pack(integers.astype(np.uint8).reshape(values.shape), bits), scales, biases


def scales_and_biases(groups: Floats, bits: int) -> tuple[Floats, Floats]:
    """Scales and biases, float32 ``[n, groups]``, of values ``[n, groups, group_size]``."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    below = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / np.float32(2**bits - 1), _SMALLEST_SCALE)
    scales = np.where(below, scales, -scales)
    edges = np.where(below, low, high)
    steps = np.rint(edges / scales)
    zero = steps == 0
    # MLX rounds after each of these operations, in this order.
    scales = np.where(zero, scales, edges / np.where(zero, 1, steps).astype(np.float32))
    return scales, np.where(zero, np.float32(0), edges)


def unpack(words: np.ndarray, bits: int) -> Floats:
    """The integers ``[n, m]`` packed in words ``[n, m * bits / 32]``, as float32."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw.astype(np.float32)
    if bits == 4:
        # Spread each byte over 16 bits, so that its halves become bytes: three times faster than the loop.
        pairs = raw.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8).astype(np.float32)
    raw = raw.reshape(len(raw), -1, bits)
    integers = np.empty((*raw.shape[:2], 8), np.float32)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        integer = raw[..., byte] >> shift
        if shift + bits > 8:
            integer |= raw[..., byte + 1] << (8 - shift)
        integers[..., place] = integer & (2**bits - 1)
    return integers.reshape(len(raw), -1)


def pack(integers: npt.NDArray[np.uint8], bits: int) -> Words:
    """Words ``[n, m * bits / 32]`` of integers ``[n, m]`` below ``2 ** bits``; the inverse of `unpack`."""
    # Eight integers fill `bits` bytes.
    eights = integers.reshape(len(integers), -1, 8)
    raw = np.zeros((*eights.shape[:2], bits), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        raw[..., byte] |= eights[..., place] << shift
        if shift + bits > 8:
            raw[..., byte + 1] |= eights[..., place] >> (8 - shift)
    return raw.reshape(len(integers), -1).view("<u4")
