"""Writes small GGUF files for tests, and damaged ones: every number of the header can be given wrongly."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
_FORMATS = {
    UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?",
    UINT64: "Q", INT64: "q", FLOAT64: "d",
}  # fmt: skip
F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_XS = (
    0,
    1,
    30,
    2,
    3,
    6,
    7,
    8,
    12,
    13,
    14,
    23,
)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


class Typed:
    """A metadata value with the GGUF type to write it as, where the Python type does not say it."""

    def __init__(self, kind: int, value: Any) -> None:
        self.kind, self.value = kind, value


def _kind_of(value: Any) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return UINT32
    return FLOAT32 if isinstance(value, float) else STRING


def value(value: Any) -> bytes:
    """Type and content of one metadata value."""
    if isinstance(value, Typed):
        return struct.pack("<I", value.kind) + struct.pack("<" + _FORMATS[value.kind], value.value)
    if isinstance(value, np.ndarray):
        kind = {"f": FLOAT32, "i": INT32, "b": BOOL}[value.dtype.kind]
        raw = value.astype({FLOAT32: "<f4", INT32: "<i4", BOOL: "?"}[kind]).tobytes()
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + raw
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    kind = _kind_of(value)
    return struct.pack("<I", kind) + (
        text(value) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)
    )


class Tensor:
    """Bytes of a tensor with its type; `shape` is outermost first."""

    def __init__(self, shape: Sequence[int], kind: int, data: bytes) -> None:
        self.shape, self.kind, self.data = tuple(shape), kind, data

    @classmethod
    def of(cls, values: np.ndarray, kind: int = F32) -> Tensor:
        """Float values, quantized as `kind`."""
        from gguf.quants import GGMLQuantizationType, quantize

        packed = quantize(np.ascontiguousarray(values, np.float32), GGMLQuantizationType(kind))
        return cls(values.shape, kind, packed.tobytes())


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A whole file. The counts default to the true ones."""
    tensors = tensors or {}
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if key_count is None else key_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts)
    header += b"".join(text(key) + value(item) for key, item in metadata.items())
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        alignment = 32
    data = b""
    for name, tensor in tensors.items():
        data += bytes(-len(data) % alignment)
        shape = tuple(reversed(tensor.shape))
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind, len(data))
        data += tensor.data
    return header + bytes(-len(header) % alignment) + data


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, **wrong: Any
) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, **wrong))
    return path
