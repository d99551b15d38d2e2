"""Weights as 8-bit and 4-bit integers, in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rounding import eight_bits, four_bits
from vt_core.files import integers
from vt_core.files.dtypes import from_float32, to_float32

VALUES = np.random.default_rng(0).standard_normal((48, 128)).astype(np.float32)


def test_rows_are_rounded_to_a_scale_of_their_own():
    scales = integers.row_scales(VALUES)
    numbers = integers.quantize_rows(VALUES, scales)
    assert numbers.dtype == np.int8 and numbers.min() >= -127
    np.testing.assert_array_equal(scales, to_float32(from_float32(scales, "bfloat16"), "bfloat16"))
    np.testing.assert_allclose(numbers * scales[:, None], eight_bits(VALUES), atol=1e-6)
    for rows in (slice(0, 1), slice(3, 17), slice(47, 48)):
        own = integers.row_scales(VALUES[rows])
        np.testing.assert_array_equal(own, scales[rows])
        np.testing.assert_array_equal(integers.quantize_rows(VALUES[rows], own), numbers[rows])


def test_scales_of_a_head_are_not_rounded():
    scales = integers.row_scales(VALUES, "float32")
    np.testing.assert_allclose(scales, np.abs(VALUES).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(integers.quantize_rows(VALUES, scales)).max(axis=1) == 127).all()


@pytest.mark.parametrize("group", integers.GROUPS)
def test_groups_of_columns_are_rounded_to_sixteen_values(group):
    scales, zeros = integers.group_scales(VALUES, group)
    pairs = integers.quantize_groups(VALUES, scales, zeros)
    assert pairs.shape == (48, 64) and scales.shape == zeros.shape == (48, 128 // group)
    numbers = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(*scales.shape, group).astype(np.float32)
    values = (numbers - 8) * scales[..., None] + zeros[..., None]
    np.testing.assert_allclose(values.reshape(VALUES.shape), four_bits(VALUES, group), atol=1e-5)


def test_zeros_stay_zero():
    zeros = np.zeros((2, 64), np.float32)
    scales = integers.row_scales(zeros)
    assert np.isfinite(scales).all() and not integers.quantize_rows(zeros, scales).any()
    factors, offsets = integers.group_scales(zeros, 64)
    pairs = integers.quantize_groups(zeros, factors, offsets)
    assert ((pairs.astype(np.float32) - 8) * factors + offsets == 0).all()


def test_only_whole_groups_and_sixteens_of_rows_get_4_bits():
    shapes = {(48, 128): 64, (16, 96): 32, (16, 40): None, (24, 64): None}
    assert {shape: integers.group_of(*shape) for shape in shapes} == shapes
