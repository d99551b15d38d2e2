"""The header of a GGUF file: metadata and tensor positions, with every size checked before use.

Layout (little-endian, versions 2 and 3): magic, version, tensor count, key count; per key a name, a type and
a value; per tensor a name, its dimensions (innermost first), a type and an offset into the data; the data,
aligned.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535
MAX_TEXT_BYTES = 1 << 24
#: Most items of an array; the largest vocabularies in use have about 2**18.
MAX_ITEMS = 1 << 24

FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), FLOAT32: np.dtype("<f4"), BOOL: np.dtype("u1"), 10: np.dtype("<u8"),
    11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip

#: The types whose values can be read: number -> (name, elements of a block, bytes of a block).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class GGUFTensor:
    """Position of one tensor: `shape` outermost first, `offset` from the start of the file, in bytes.

    `block`: elements and bytes of one block of its type.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    type_name: str
    block: tuple[int, int]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (one run along the innermost dimension)."""
        elements, size = self.block
        return self.shape[-1] // elements * size


class StringArray:
    """An array of strings, read from the file on request."""

    def __init__(self, file: GGUFFile, key: str, start: int, end: int, count: int) -> None:
        self._file, self._key, self._start, self._end, self._count = file, key, start, end, count

    def __len__(self) -> int:
        return self._count

    def decode(self) -> list[str]:
        """All strings, in order.

        Raises:
            ModelError: one of them is not UTF-8.
        """
        data = self._file.read(self._start, self._end - self._start)
        length_at = _U64.unpack_from
        strings, at = [], 0
        try:
            for _ in range(self._count):
                begin = at + 8
                at = begin + length_at(data, at)[0]
                strings.append(str(data[begin:at], "utf-8"))
        except (UnicodeDecodeError, struct.error) as error:
            raise ModelError(
                f"{self._file.path}: entry {len(strings)} of {self._key} is not UTF-8 text."
            ) from error
        return strings


class GGUFFile:
    """An open GGUF file: `metadata` by key and `tensors` by their GGUF name.

    Scalars are Python values, arrays of numbers numpy arrays, arrays of strings StringArray.

    Raises:
        ModelError: the file is not a GGUF file, or is damaged, truncated, big-endian or of an unknown
            version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be opened: {error.strerror}.") from error
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{self.path} is not a file.")
        self._parse()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes [offset, offset + nbytes) of the file.

        A plain read, not a view of a mapping: mapped pages would count as this process's memory, and a file
        that shrinks under a mapping kills the process.

        Raises:
            ModelError: the file has become shorter.
        """
        parts = []
        while nbytes:
            part = os.pread(self._descriptor, nbytes, offset)
            if not part:
                raise ModelError(f"{self.path} was cut while being read: it ends at byte {offset}.")
            parts.append(part)
            offset += len(part)
            nbytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def rows(self, tensor: GGUFTensor, start: int, count: int) -> np.ndarray:
        """Some rows of a tensor, dequantized, `[count, columns]` float32; a vector is one row.

        Raises:
            ModelError: the file has become shorter.
        """
        from gguf.quants import GGMLQuantizationType, dequantize

        data = self.read(tensor.offset + start * tensor.row_bytes, count * tensor.row_bytes)
        packed = np.frombuffer(data, np.uint8).reshape(-1, tensor.row_bytes)
        with np.errstate(all="ignore"):  # from damaged scales; who uses the values checks them
            return dequantize(packed, GGMLQuantizationType(tensor.type))

    def text(self, key: str, default: str | None = None) -> str | None:
        """The text under `key`, else `default`.

        Raises:
            ModelError: a value that is not text.
        """
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            raise ModelError(f"{self.path}: {key} is not text.")
        return value

    def header(self) -> bytes:
        """The bytes before the tensors' data."""
        return self.read(0, min(self.data_offset, self.size))

    def _parse(self) -> None:
        if self.size < 24:
            raise ModelError(
                f"{self.path} is not a GGUF file: it has {self.size} bytes, a GGUF header at least 24."
            )
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(self, data)
            self.version = _check_magic(self.path, data)
            cursor.at = 8
            tensor_count, key_count = cursor.u64("the tensor count"), cursor.u64("the key count")
            cursor.expect_items(tensor_count, 24, "tensors")
            cursor.expect_items(key_count, 13, "metadata keys")
            self.metadata = _read_metadata(cursor, key_count)
            infos = _read_tensor_infos(cursor, tensor_count)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ModelError(f"{self.path}: general.alignment is {alignment!r}, not a power of two.")
        self.data_offset = -(-cursor.at // alignment) * alignment
        self.tensors = _place_tensors(self, infos, alignment)


def _check_magic(path: Path, data: mmap.mmap) -> int:
    if data[:4] != MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it starts with {data[:4]!r}, not {MAGIC!r}.")
    version = _U32.unpack_from(data, 4)[0]
    if version not in VERSIONS:
        if version & 0xFFFF == 0:
            raise ModelError(
                f"{path} is a big-endian GGUF file, which is not supported: get the little-endian one."
            )
        raise ModelError(f"{path} is a GGUF file of version {version}; versions 2 and 3 can be read.")
    return version


class _Cursor:
    """A position in the header, checked against the end of the file."""

    def __init__(self, file: GGUFFile, data: mmap.mmap) -> None:
        self.file, self.data, self.at = file, data, 0

    def fail(self, what: str) -> ModelError:
        return ModelError(
            f"{self.file.path} is damaged or was cut off: {what} at byte {self.at} of {self.file.size}."
        )

    def u32(self, what: str) -> int:
        return self._number(_U32, what)

    def u64(self, what: str) -> int:
        return self._number(_U64, what)

    def _number(self, layout: struct.Struct, what: str) -> int:
        if self.at + layout.size > self.file.size:
            raise self.fail(f"{what} does not fit")
        value = layout.unpack_from(self.data, self.at)[0]
        self.at += layout.size
        return value

    def expect_items(self, count: int, least_bytes: int, what: str) -> None:
        """Raise ModelError for a count whose smallest encoding is longer than the rest of the file."""
        if count * least_bytes > self.file.size - self.at:
            raise self.fail(f"{count} {what} do not fit")

    def text(self, what: str, most: int = MAX_TEXT_BYTES) -> str:
        length = self.u64(f"the length of {what}")
        if length > min(most, self.file.size - self.at):
            raise self.fail(f"{what} claims {length} bytes")
        raw = self.data[self.at : self.at + length]
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 text") from error
        self.at += length
        return value

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = SCALARS[kind]
        self.expect_items(count, dtype.itemsize, f"values of {what}")
        values = np.frombuffer(self.data[self.at : self.at + count * dtype.itemsize], dtype)
        self.at += count * dtype.itemsize
        return values.astype(bool) if kind == BOOL else values

    def strings(self, key: str, count: int) -> StringArray:
        self.expect_items(count, 8, f"strings of {key}")
        start = at = self.at
        data, last, length_at = self.data, self.file.size - 8, _U64.unpack_from
        for index in range(count):
            if at > last:
                self.at = min(at, self.file.size)
                raise self.fail(f"entry {index} of {key} does not fit")
            at += 8 + length_at(data, at)[0]
        if at > self.file.size:
            raise self.fail(f"the last entry of {key} does not fit")
        self.at = at
        return StringArray(self.file, key, start, at, count)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"the metadata key {key} is given twice")
        metadata[key] = _read_value(cursor, key, cursor.u32(f"the type of {key}"))
    return metadata


def _read_value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == STRING:
        return cursor.text(f"the value of {key}")
    if kind in SCALARS:
        value = cursor.numbers(kind, 1, key)[0]
        # The shortest decimal of this float32: 1e-05, where the exact double reads 9.999999747378752e-06.
        return float(str(value)) if kind == FLOAT32 else value.item()
    if kind != ARRAY:
        raise cursor.fail(f"{key} has the unknown type {kind}")
    item_kind, count = cursor.u32(f"the item type of {key}"), cursor.u64(f"the length of {key}")
    if count > MAX_ITEMS:
        raise cursor.fail(f"{key} claims {count} items")
    if item_kind == STRING:
        return cursor.strings(key, count)
    if item_kind in SCALARS:
        return cursor.numbers(item_kind, count, key)
    raise cursor.fail(f"{key} is an array of the unsupported type {item_kind}")


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _read_tensor_infos(cursor: _Cursor, count: int) -> list[_TensorInfo]:
    infos = []
    for index in range(count):
        name = cursor.text(f"the name of tensor {index}", MAX_KEY_BYTES)
        rank = cursor.u32(f"the rank of {name}")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise cursor.fail(f"the tensor {name} has {rank} dimensions")
        dimensions = [cursor.u64(f"a dimension of {name}") for _ in range(rank)]
        kind, offset = cursor.u32(f"the type of {name}"), cursor.u64(f"the offset of {name}")
        infos.append(_TensorInfo(name, tuple(reversed(dimensions)), kind, offset))
    return infos


def _place_tensors(file: GGUFFile, infos: list[_TensorInfo], alignment: int) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise ModelError(f"{file.path} is damaged: it has two tensors named {info.name}.")
        if info.type not in TENSOR_TYPES:
            known = ", ".join(name for name, _, _ in TENSOR_TYPES.values())
            raise ModelError(
                f"{file.path}: the tensor {info.name} has the quantization type {info.type}, which cannot be "
                f"read; take a file quantized as one of {known}."
            )
        type_name, elements, size = TENSOR_TYPES[info.type]
        if info.shape[-1] % elements or min(info.shape) < 1:
            raise ModelError(
                f"{file.path} is damaged: the tensor {info.name} has the shape {list(info.shape)}, "
                f"which {type_name} blocks of {elements} do not fill."
            )
        nbytes = size * (info.shape[-1] // elements)
        for dimension in info.shape[:-1]:
            nbytes *= dimension
        offset = file.data_offset + info.offset
        if info.offset % alignment or offset + nbytes > file.size:
            raise ModelError(
                f"{file.path} is damaged or was cut off: the tensor {info.name} needs bytes {offset} to "
                f"{offset + nbytes} of {file.size}, on a multiple of {alignment}."
            )
        tensors[info.name] = GGUFTensor(
            info.name, info.shape, info.type, type_name, (elements, size), offset, nbytes
        )
    return tensors
