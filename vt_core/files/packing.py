"""Packing rows in MLX's affine format and back, in numpy: the bits that `mx.quantize` gives.

What the format is, and what the words mean, is said in :mod:`vt_core.files.quantization`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vt_core.files.dtypes import storage_dtype, to_float32
from vt_core.files.quantization import Quantization

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

#: The smallest step between two values, so that a group of equal ones can be divided by it.
_LEAST_SCALE = np.float32(1e-7)


def join(words: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> Words:
    """Rows as the store keeps them, ``[n, columns]``, of numbers, scales and biases in storage dtype."""
    parts = (np.ascontiguousarray(part).view(np.uint8) for part in (words, scales, biases))
    return np.concatenate(list(parts), axis=1).view("<u4")


def split(rows: Words, how: Quantization) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of stored rows: words ``[n, words]``, scales and biases ``[n, groups]`` in storage dtype."""
    values = how.values(rows.shape[1])
    words, groups = how.words(values), how.groups(values)
    floats = rows[:, words:].view(storage_dtype(how.dtype))
    return rows[:, :words], floats[:, :groups], floats[:, groups:]


def dequantize(rows: Words, how: Quantization) -> Floats:
    """Values ``[n, hidden]`` of stored rows, computed in float32."""
    words, *floats = split(rows, how)
    scales, biases = (to_float32(part, how.dtype) for part in floats)
    return expand(words, scales, biases, how.bits)


def expand(words: np.ndarray, scales: Floats, biases: Floats, bits: int) -> Floats:
    """Values ``[n, hidden]`` of words ``[n, words]`` with scales and biases ``[n, groups]``."""
    values = unpack(words, bits)
    groups = values.reshape(*scales.shape, -1)
    groups *= scales[..., None]
    groups += biases[..., None]
    return values


def quantize(values: Floats, bits: int, group_size: int) -> tuple[Words, Floats, Floats]:
    """Words, scales and biases of ``values [n, hidden]``, the last two not rounded to the model's dtype yet.

    The end of a group's range that is larger in size is met exactly, as is zero where it lies inside.
    """
    groups = values.reshape(len(values), -1, group_size)
    scales, biases = scales_and_biases(groups, bits)
    numbers = groups - biases[..., None]
    numbers /= scales[..., None]
    np.clip(np.rint(numbers, out=numbers), 0, 2**bits - 1, out=numbers)
    return pack(numbers.astype(np.uint8).reshape(values.shape), bits), scales, biases


def scales_and_biases(groups: Floats, bits: int) -> tuple[Floats, Floats]:
    """Both ``[n, groups]``, float32, of values ``[n, groups, group_size]``."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    below = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / np.float32(2**bits - 1), _LEAST_SCALE)
    scales = np.where(below, scales, -scales)
    edges = np.where(below, low, high)
    steps = np.rint(edges / scales)
    zero = steps == 0
    # Each of these is a float32 operation by itself, in this order: MLX's bits depend on it.
    scales = np.where(zero, scales, edges / np.where(zero, 1, steps).astype(np.float32))
    return scales, np.where(zero, np.float32(0), edges)


def unpack(words: np.ndarray, bits: int) -> Floats:
    """The numbers ``[n, m]`` that lie in words ``[n, m * bits / 32]``, as float32."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets.astype(np.float32)
    if bits == 4:
        # An octet's halves become the octets of a 16-bit number: three times faster than the general way.
        pairs = octets.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8).astype(np.float32)
    octets = octets.reshape(len(octets), -1, bits)
    numbers = np.empty((*octets.shape[:2], 8), np.float32)
    for place in range(8):
        octet, shift = divmod(place * bits, 8)
        number = octets[..., octet] >> shift
        if shift + bits > 8:
            number |= octets[..., octet + 1] << (8 - shift)
        numbers[..., place] = number & (2**bits - 1)
    return numbers.reshape(len(octets), -1)


def pack(numbers: npt.NDArray[np.uint8], bits: int) -> Words:
    """The other way round: words ``[n, m * bits / 32]`` of ``numbers [n, m]`` below ``2 ** bits``."""
    # Eight numbers fill as many octets as one has bits.
    eights = numbers.reshape(len(numbers), -1, 8)
    octets = np.zeros((*eights.shape[:2], bits), np.uint8)
    for place in range(8):
        octet, shift = divmod(place * bits, 8)
        octets[..., octet] |= eights[..., place] << shift
        if shift + bits > 8:
            octets[..., octet + 1] |= eights[..., place] >> (8 - shift)
    return octets.reshape(len(numbers), -1).view("<u4")
