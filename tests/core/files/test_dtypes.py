"""Element types: storage, rounding, and refused conversions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import ModelError
from vt_core.files import dtypes


@pytest.mark.parametrize(
    ("name", "storage", "size"),
    [
        ("float32", np.float32, 4),
        ("float16", np.float16, 2),
        ("bfloat16", np.uint16, 2),
        ("uint32", np.uint32, 4),
        ("uint8", np.uint8, 1),
    ],
)
def test_storage_type_and_size(name: str, storage: type, size: int) -> None:
    assert dtypes.storage_dtype(name) == storage
    assert dtypes.item_size(name) == size


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    bits = np.array([0x3F80, 0xBF80, 0x0000, 0x8000, 0x7F80, 0x4049], np.uint16)
    assert dtypes.to_float32(bits, "bfloat16").tolist() == [1.0, -1.0, 0.0, -0.0, np.inf, 3.140625]


@pytest.mark.parametrize(
    ("value_bits", "rounded"),
    [
        (0x3F808000, 0x3F80),  # half way, even below
        (0x3F818000, 0x3F82),  # half way, even above
        (0x3F808001, 0x3F81),  # just above half way
        (0x3F807FFF, 0x3F80),  # just below half way
        (0x7F7FFFFF, 0x7F80),  # the largest float32 becomes infinite
        (0x00000001, 0x0000),  # the smallest becomes zero
    ],
)
def test_bfloat16_rounds_to_nearest_even(value_bits: int, rounded: int) -> None:
    value = np.array([value_bits], np.uint32).view(np.float32)
    assert dtypes.from_float32(value, "bfloat16").tolist() == [rounded]


def test_float16_rounds_to_nearest_even_and_overflows_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    values = np.array([2049.0, 2051.0, 1e9, -1e9], np.float32)
    assert dtypes.from_float32(values, "float16").tolist() == [2048.0, 2052.0, np.inf, -np.inf]
    assert not recwarn.list


def test_nan_stays_nan() -> None:
    nan = np.array([np.nan], np.float32)
    for name in ("float16", "bfloat16"):
        assert np.isnan(dtypes.to_float32(dtypes.from_float32(nan, name), name)).all()


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50), st.sampled_from(["bfloat16", "float16"]))
def test_16_bit_floats_survive_float32(bits: list[int], name: str) -> None:
    stored = np.array(bits, np.uint16).view(dtypes.storage_dtype(name))
    wide = dtypes.to_float32(stored, name)
    numbers = ~np.isnan(wide)
    back = dtypes.from_float32(wide, name)
    assert back.view(np.uint16)[numbers].tolist() == stored.view(np.uint16)[numbers].tolist()


def test_convert_keeps_shape() -> None:
    half = np.array([[1.0, 2.5], [-3.0, 65504.0]], np.float16)
    brain = dtypes.convert(half, "float16", "bfloat16")
    assert brain.dtype == np.uint16
    assert dtypes.to_float32(brain, "bfloat16").tolist() == [[1.0, 2.5], [-3.0, 65536.0]]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "uint32", "uint8"])
def test_same_type_is_returned_as_is(name: str) -> None:
    array = np.ones((2, 3), dtypes.storage_dtype(name))
    assert dtypes.convert(array, name, name) is array


def test_float32_is_returned_as_is() -> None:
    array = np.ones(3, np.float32)
    assert dtypes.to_float32(array, "float32") is array
    assert dtypes.from_float32(array, "float32") is array


def test_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'float8' is unknown"):
        dtypes.storage_dtype("float8")


def test_packed_values_are_not_converted() -> None:
    packed = np.ones(3, np.uint32)
    for call in (
        lambda: dtypes.to_float32(packed, "uint32"),
        lambda: dtypes.convert(packed, "uint32", "float16"),
    ):
        with pytest.raises(ModelError, match="'uint32' holds packed values"):
            call()
    with pytest.raises(ModelError, match="'uint8' holds packed values"):
        dtypes.convert(np.ones(3, np.float32), "float32", "uint8")


def test_wrong_storage_is_refused() -> None:
    with pytest.raises(ModelError, match="float32 cannot hold bfloat16"):
        dtypes.to_float32(np.ones(3, np.float32), "bfloat16")
