from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.safetensors_io import (
    DATA_ALIGNMENT,
    DTYPES,
    ITEM_BYTES,
    read_chunks,
    read_header,
    tensor_bytes,
    write_file,
)
from converters.source import TensorInfo
from tests.converters.tiny import raw_safetensors, save
from vt_core.errors import ModelError


def f32(shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def read_all(path: Path, name: str, chunk_bytes: int = 1 << 20) -> bytes:
    return b"".join(chunk.tobytes() for chunk in read_chunks(path, read_header(path)[name], chunk_bytes))


def test_reads_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    a, b = np.arange(6, dtype="<f4").reshape(2, 3), np.array([7, 8], "<u2")
    save(path, {"a": a, "b": b})
    header = read_header(path)
    assert {name: entry.info for name, entry in header.items()} == {
        "a": TensorInfo("a", "float32", (2, 3)),
        "b": TensorInfo("b", "bfloat16", (2,)),
    }
    assert read_all(path, "a") == a.tobytes()
    assert read_all(path, "b") == b.tobytes()


@pytest.mark.parametrize(
    ("chunk_bytes", "lengths"),
    [(1 << 20, [120]), (48, [48, 48, 24]), (47, [24] * 5), (1, [24] * 5)],
    ids=["whole", "two rows", "rounded down", "never less than a row"],
)
def test_chunks_are_whole_rows(tmp_path: Path, chunk_bytes: int, lengths: list[int]) -> None:
    path = tmp_path / "a.safetensors"
    values = np.arange(30, dtype="<f4").reshape(5, 6)
    save(path, {"a": values})
    entry = read_header(path)["a"]
    assert [len(chunk) for chunk in read_chunks(path, entry, chunk_bytes)] == lengths
    assert read_all(path, "a", chunk_bytes) == values.tobytes()


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"scalar": np.array(2.5, "<f4"), "empty": np.zeros((0, 4), "<f4")})
    assert read_all(path, "scalar") == struct.pack("<f", 2.5)
    assert read_all(path, "empty") == b""


def test_tensors_out_of_order_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        raw_safetensors({"late": f32([1], 4, 8), "early": f32([1], 0, 4)}, struct.pack("<2f", 1, 2))
    )
    assert list(read_header(path)) == ["early", "late"]
    assert read_all(path, "late") == struct.pack("<f", 2)


BROKEN = {
    "empty file": (b"", "is not a safetensors file: it has 0 bytes"),
    "short": (b"abc", "is not a safetensors file: it has 3 bytes"),
    "huge header": (struct.pack("<Q", 1 << 60) + b"{}", "its header claims 1152921504606846976 bytes"),
    "header beyond the file": (
        raw_safetensors({}, length=50),
        r"is truncated: its header claims 50 bytes, 2 follow",
    ),
    "no JSON": (raw_safetensors(b"hello"), "not valid JSON"),
    "deep JSON": (raw_safetensors(b"[" * 100_000), "levels deep"),
    "bytes that are not text": (raw_safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "a list": (raw_safetensors([]), "not a JSON object"),
    "a name twice": (raw_safetensors(b'{"a": {}, "a": {}}'), "'a' appears twice"),
    "no entry": (raw_safetensors({"a": 3}), "entry for 'a' is not an object"),
    "unknown dtype": (
        raw_safetensors({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        "'a' has the dtype 'F8_E4M3', which vt does not read",
    ),
    "dtype of another type": (
        raw_safetensors({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}),
        "dtype",
    ),
    "negative size": (raw_safetensors({"a": f32([-1], 0, 4)}, b"1234"), "not a list of sizes"),
    "fraction": (raw_safetensors({"a": f32([1.0], 0, 4)}, b"1234"), "not a list of sizes"),
    "truth as a size": (raw_safetensors({"a": f32([True], 0, 4)}, b"1234"), "not a list of sizes"),
    "too many axes": (raw_safetensors({"a": f32([1] * 17, 0, 4)}, b"1234"), "not a list of sizes"),
    "one offset": (
        raw_safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}),
        "not two positions",
    ),
    "negative offset": (raw_safetensors({"a": f32([1], -4, 0)}), "not two positions"),
    "size and offsets differ": (
        raw_safetensors({"a": f32([2], 0, 4)}, b"1234"),
        r"F32 of shape \[2\], which takes 8 bytes, and its offsets span 4",
    ),
    "offsets reversed": (raw_safetensors({"a": f32([1], 4, 0)}, b"1234"), "its offsets span -4"),
    "overflowing shape": (
        raw_safetensors({"a": f32([1 << 62, 1 << 62], 0, 4)}, b"1234"),
        "its offsets span 4",
    ),
    "overlap": (raw_safetensors({"a": f32([2], 0, 8), "b": f32([1], 4, 8)}, b"12345678"), "'b' overlaps"),
    "hole": (
        raw_safetensors({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, b"123456789012"),
        "4 bytes before 'b'",
    ),
    "truncated": (raw_safetensors({"a": f32([2], 0, 8)}, b"1234"), "is truncated: its header describes"),
    "trailing bytes": (raw_safetensors({"a": f32([1], 0, 4)}, b"12345"), "has 1 bytes after its last tensor"),
}


@pytest.mark.parametrize(("content", "sentence"), BROKEN.values(), ids=BROKEN)
def test_unsound_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"a": np.zeros((4, 4), "<f4")})
    entry = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="ended inside tensor 'a'"):
        list(read_chunks(path, entry, 16))


def test_golden_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    infos = [TensorInfo("h", "bfloat16", (2,)), TensorInfo("w", "float32", (1, 1))]
    values = {"h": np.array([1, 2], "<u2"), "w": np.array([[1.5]], "<f4")}
    write_file(path, infos, lambda info: [values[info.name]], {"format": "pt"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert (8 + length) % DATA_ALIGNMENT == 0
    assert content[8 : 8 + length].rstrip(b" ") == (
        b'{"__metadata__":{"format":"pt"},'
        b'"w":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"h":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}}'
    )
    assert content[8 + length :] == struct.pack("<fHH", 1.5, 1, 2)


@pytest.mark.parametrize("given_rows", [1, 3])
def test_wrong_number_of_bytes_is_refused(tmp_path: Path, given_rows: int) -> None:
    infos = [TensorInfo("a", "float32", (2, 2))]
    with pytest.raises(ModelError, match=rf"shape \[2, 2\] needs 16 bytes, its source gave {given_rows * 8}"):
        write_file(tmp_path / "a", infos, lambda _: [np.zeros((given_rows, 2), "<f4")], {})


tensor_lists = st.lists(
    st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=3)), max_size=6
)


@given(tensor_lists, st.integers(1, 40))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tensors: list[Any], chunk_bytes: int) -> None:
    path = tmp_path_factory.mktemp("round") / "a.safetensors"
    infos = [TensorInfo(f"t{number}", dtype, tuple(shape)) for number, (dtype, shape) in enumerate(tensors)]
    content = {info.name: bytes(index % 251 for index in range(tensor_bytes(info))) for info in infos}
    write_file(path, infos, lambda info: [np.frombuffer(content[info.name], np.uint8)], {"format": "pt"})
    header = read_header(path)
    assert sorted((entry.info for entry in header.values()), key=lambda info: info.name) == infos
    for name, value in content.items():
        assert read_all(path, name, chunk_bytes) == value
        assert header[name].start % ITEM_BYTES[header[name].info.dtype] == 0


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    values = {
        "a": np.arange(12, dtype="<f4").reshape(3, 4),
        "b": np.arange(5, dtype="<i8"),
        "c": np.array([True, False]),
    }
    infos = [TensorInfo(name, value.dtype.name, value.shape) for name, value in values.items()]
    write_file(path, infos, lambda info: [values[info.name]], {"format": "pt"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name, value in values.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)


def test_every_dtype_has_its_numpy_size() -> None:
    for dtype, size in DTYPES.values():
        assert np.dtype("uint16" if dtype == "bfloat16" else dtype).itemsize == size
