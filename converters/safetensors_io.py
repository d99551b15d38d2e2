"""Reading and writing safetensors files a chunk at a time, without a framework.

The format: eight bytes little-endian length of the header, the header (a JSON object: tensor name -> dtype,
shape, data_offsets; "__metadata__" -> strings), then the tensors' bytes without gaps. A header is
checked against the file's size before its values are used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.source import TensorInfo
from vt_core.errors import ModelError
from vt_core.files.json_files import lfs_pointer, parse_object

if TYPE_CHECKING:
    import numpy as np

#: The same cap as the format's reference implementation: a larger header is an attack or a broken file.
MAX_HEADER_BYTES = 100_000_000
DATA_ALIGNMENT = 64
MAX_DIMENSIONS = 16

#: Code in the file -> storage dtype and its size in bytes.
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
CODES = {dtype: code for code, (dtype, _) in DTYPES.items()}
ITEM_BYTES = {dtype: size for dtype, size in DTYPES.values()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its bytes are `file[start : start + size]`."""

    info: TensorInfo
    start: int
    size: int


def tensor_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * ITEM_BYTES[info.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, by name, in the order of their bytes.

    Raises:
        ModelError: the header is invalid.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if sentence := lfs_pointer(file.read(64)):
            raise ModelError(f"{path} {sentence}.")
        file.seek(0)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(f"{path} is not a safetensors file: it has {size} bytes.")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > MAX_HEADER_BYTES:
            raise ModelError(f"{path} is not a safetensors file: its header claims {header_bytes} bytes.")
        if header_bytes > size - 8:
            raise ModelError(
                f"{path} is truncated: its header claims {header_bytes} bytes, {size - 8} follow. "
                "Download it again."
            )
        raw = file.read(header_bytes)
    entries = [
        _entry(path, name, value, data_start=8 + header_bytes)
        for name, value in _parse(path, raw).items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.start, entry.size))
    _check_layout(path, entries, data_start=8 + header_bytes, file_bytes=size)
    return {entry.info.name: entry for entry in entries}


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    return parse_object(raw, f"{path}, header", "safetensors file", ModelError)


def _entry(path: Path, name: str, value: Any, *, data_start: int) -> Entry:
    def whole(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63

    if not isinstance(value, dict):
        raise ModelError(f"{path}: the header's entry for {name!r} is not an object.")
    code, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise ModelError(f"{path}: tensor {name!r} has the dtype {code!r}, which vt does not read.")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(whole, shape)):
        raise ModelError(f"{path}: tensor {name!r} has the shape {shape!r}, which is not a list of sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)):
        raise ModelError(f"{path}: tensor {name!r} has the offsets {offsets!r}, which are not two positions.")
    begin, end = offsets
    dtype, item_bytes = DTYPES[code]
    expected = math.prod(shape) * item_bytes
    if end - begin != expected:
        raise ModelError(
            f"{path}: tensor {name!r} is {code} of shape {shape}, which takes {expected} bytes, "
            f"and its offsets span {end - begin}."
        )
    return Entry(TensorInfo(name, dtype, tuple(shape)), data_start + begin, expected)


def _check_layout(path: Path, entries: Sequence[Entry], *, data_start: int, file_bytes: int) -> None:
    position = data_start
    for entry in entries:
        if entry.start < position:
            raise ModelError(f"{path}: tensor {entry.info.name!r} overlaps the one before it.")
        if entry.start > position:
            raise ModelError(
                f"{path}: {entry.start - position} bytes before {entry.info.name!r} belong to no tensor."
            )
        position += entry.size
    if position > file_bytes:
        raise ModelError(
            f"{path} is truncated: its header describes {position} bytes, the file has {file_bytes}. "
            "Download it again."
        )
    if position < file_bytes:
        raise ModelError(f"{path} has {file_bytes - position} bytes after its last tensor.")


def read_chunks(path: Path, entry: Entry, chunk_bytes: int) -> Iterator[np.ndarray]:
    """The tensor's bytes as uint8 arrays `[n]` of whole rows, at most `chunk_bytes` each (one row if that is
    larger).

    Every array is a view of one buffer and holds until the next is asked for. Read, not mapped: a mapped page
    that was touched counts as resident memory of this process.
    """
    import numpy as np

    rows = entry.info.shape[0] if entry.info.shape else 1
    if entry.size == 0:
        return
    row_bytes = entry.size // rows
    step = max(1, chunk_bytes // row_bytes) * row_bytes
    buffer = np.empty(min(step, entry.size), np.uint8)
    with path.open("rb", buffering=0) as file:
        for offset in range(0, entry.size, step):
            chunk = buffer[: min(step, entry.size - offset)]
            _read_into(file, path, entry, offset, chunk.data)
            yield chunk


def _read_into(file: Any, path: Path, entry: Entry, offset: int, target: memoryview) -> None:
    file.seek(entry.start + offset)
    filled = 0
    while filled < len(target):
        count = file.readinto(target[filled:])
        if not count:
            raise ModelError(f"{path} ended inside tensor {entry.info.name!r}: it changed while it was read.")
        filled += count


def file_order(infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The order in which a file holds them: wide elements first, so that each tensor starts at a multiple of
    its own."""
    return sorted(infos, key=lambda info: (-ITEM_BYTES[info.dtype], info.name))


def header_bytes(infos: Sequence[TensorInfo], metadata: dict[str, str]) -> bytes:
    """The bytes before the data: length and header, padded with spaces so that the data starts aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for info in infos:
        end = position + tensor_bytes(info)
        header[info.name] = {
            "dtype": CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % DATA_ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw


def write_file(
    path: Path,
    infos: Iterable[TensorInfo],
    chunks: Callable[[TensorInfo], Iterable[np.ndarray]],
    metadata: dict[str, str],
) -> str:
    """Write a file whose tensors come from `chunks(info)`, C-contiguous arrays in order, and sync it.

    Returns the SHA-256 of the file, in hex.

    Raises:
        ModelError: a tensor's chunks are not as many bytes as its shape says.
        OSError: writing failed.
    """
    ordered = file_order(infos)
    header = header_bytes(ordered, metadata)
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for info in ordered:
            written = 0
            for chunk in chunks(info):
                written += file.write(chunk.data)
                digest.update(chunk.data)
            if written != tensor_bytes(info):
                raise ModelError(
                    f"Tensor {info.name!r} of shape {list(info.shape)} needs {tensor_bytes(info)} bytes, "
                    f"its source gave {written}."
                )
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
