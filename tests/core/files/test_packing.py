"""MLX's affine format in numpy, compared with mlx and with the description of the format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vt_core.errors import ModelError
from vt_core.files import packing
from vt_core.files.dtypes import from_float32, to_float32
from vt_core.files.quantization import BITS, GROUP_SIZES, Quantization

DTYPES = ("float32", "bfloat16", "float16")


def difficult(seed: int = 0) -> np.ndarray:
    """[24, 128] float32: sizes from 1e-9 to 30, groups of one value, of one sign, of zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((24, 128)) * rng.choice([1e-9, 1e-3, 1, 30], size=(24, 1))
    values[0], values[1], values[2] = 0, 1.5, -2
    values[3, :64], values[4, :64] = np.abs(values[3, :64]), -np.abs(values[4, :64])
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_quantize_equals_mlx_bit_by_bit(bits, dtype):
    mx = pytest.importorskip("mlx.core")
    values = to_float32(from_float32(difficult(), dtype), dtype)
    for group_size in GROUP_SIZES:
        theirs = mx.quantize(
            mx.array(values).astype(getattr(mx, dtype)), group_size=group_size, bits=bits, stream=mx.cpu
        )
        words, *floats = packing.quantize(values, bits, group_size)
        np.testing.assert_array_equal(words, np.array(theirs[0]))
        stored = [from_float32(part, dtype) for part in floats]
        for ours, other in zip(stored, theirs[1:], strict=True):
            np.testing.assert_array_equal(to_float32(ours, dtype), np.array(other.astype(mx.float32)))
        rows = packing.join_rows(words, *stored)
        wide = [part.astype(mx.float32) for part in theirs[1:]]
        expected = mx.dequantize(theirs[0], *wide, group_size=group_size, bits=bits, stream=mx.cpu)
        how = Quantization(bits, group_size, dtype)
        np.testing.assert_array_equal(packing.dequantize(rows, how), np.array(expected))


@given(
    st.sampled_from(BITS).flatmap(
        lambda bits: st.tuples(
            st.just(bits), arrays.arrays(np.uint8, (3, 64), elements=st.integers(0, 2**bits - 1))
        )
    )
)
def test_pack_round_trip(case):
    bits, numbers = case
    words = packing.pack(numbers, bits)
    assert words.shape == (3, 64 * bits // 32) and words.dtype == np.uint32
    np.testing.assert_array_equal(packing.unpack(words, bits), numbers)
    # Lowest bit first.
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(3, 64, bits)
    np.testing.assert_array_equal((stream * (1 << np.arange(bits))).sum(axis=2), numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_rows_inverts_join_rows(dtype):
    how = Quantization(5, 32, dtype)
    words, *floats = packing.quantize(difficult()[:, :96], 5, 32)
    floats = [from_float32(part, dtype) for part in floats]
    rows = packing.join_rows(words, *floats)
    assert rows.shape[1] == how.stored_columns(96) and how.row_values(rows.shape[1]) == 96
    padded = np.zeros((len(rows), rows.shape[1] + 3), np.uint32)
    padded[:, :-3] = rows
    for ours, part in zip(packing.split_rows(padded[:, :-3], how), (words, *floats), strict=True):
        np.testing.assert_array_equal(ours, part)


def test_quantization_error_is_at_most_half_a_step():
    values = difficult()
    for bits in BITS:
        words, scales, biases = packing.quantize(values, bits, 64)
        error = np.abs(packing.dequantize_groups(words, scales, biases, bits) - values).reshape(
            len(values), 2, 64
        )
        # MLX represents zero exactly, which can move the far end of the range by another half step.
        assert (error <= 1.01 * np.abs(scales)[..., None]).all()
        assert np.median(error / np.abs(scales)[..., None]) < 0.5


def test_unsupported_settings_are_refused():
    for arguments in ((7, 64, "float32"), (4, 16, "float32"), (4, 64, "uint8"), (4, 64, "float32", "nvfp4")):
        with pytest.raises(ModelError, match="affine format"):
            Quantization(*arguments)
    with pytest.raises(ModelError, match="a row of 96 values cannot be divided into groups of 64"):
        Quantization(4, 64, "float32").stored_columns(96)
