"""Element types by name, their storage in numpy, and conversions between the float types.

numpy has no bfloat16, so its bits are stored as uint16. "uint32", "uint8" and "int8" hold quantized values,
which cannot be converted like numbers.
"""

from __future__ import annotations

import numpy as np

from vt_core.errors import ModelError, shorten

_STORAGE: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
}
FLOATS = ("float32", "float16", "bfloat16")


def storage_dtype(name: str) -> np.dtype:
    """The numpy type that stores elements of type `name`. Raises ModelError for an unknown name."""
    if not isinstance(name, str) or name not in _STORAGE:
        raise ModelError(f"Element type {shorten(name)} is unknown; use one of {', '.join(_STORAGE)}.")
    return _STORAGE[name]


def item_size(name: str) -> int:
    """Bytes of one element. Raises ModelError for an unknown name."""
    return storage_dtype(name).itemsize


def to_float32(array: np.ndarray, dtype_name: str) -> np.ndarray:
    """Values of a storage array of type `dtype_name` as float32, same shape. float32 is returned as it is.

    Raises ModelError when the type is not a float type, or is not stored in arrays of this type.
    """
    _check_float(dtype_name)
    _check_storage(array, dtype_name)
    if dtype_name == "float32":
        return array
    if dtype_name == "bfloat16":
        return array.view(_bfloat16()).astype(np.float32)
    return array.astype(np.float32)


def from_float32(array: np.ndarray, dtype_name: str) -> np.ndarray:
    """float32 values as a storage array of type `dtype_name`, same shape, rounded to nearest even.

    Values out of range become infinite; NaN stays NaN. Raises ModelError as `to_float32` does.
    """
    _check_float(dtype_name)
    _check_storage(array, "float32")
    if dtype_name == "float32":
        return array
    if dtype_name == "bfloat16":
        return array.astype(_bfloat16()).view(_STORAGE["bfloat16"])
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def convert(array: np.ndarray, from_name: str, to_name: str) -> np.ndarray:
    """A storage array of type `from_name` converted to type `to_name`. Equal types return the array itself.

    Raises ModelError when a name is unknown or, for different names, not a float type.
    """
    _check_storage(array, from_name)
    if from_name == to_name:
        return array
    _check_float(to_name)
    return from_float32(to_float32(array, from_name), to_name)


def _bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _check_float(name: str) -> None:
    storage_dtype(name)
    if name not in FLOATS:
        raise ModelError(
            f"Element type {name!r} holds packed values and cannot be converted; use a float type."
        )


def _check_storage(array: np.ndarray, name: str) -> None:
    if array.dtype != storage_dtype(name):
        raise ModelError(
            f"An array of {array.dtype} cannot hold {name}, which is stored as {_STORAGE[name]}."
        )
