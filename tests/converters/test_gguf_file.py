from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.gguf_file import TENSOR_TYPES, GGUFFile, StringArray
from tests.converters import gguf_writer as gguf
from tests.converters.gguf_writer import F32, Q8_0, Tensor, Typed, gguf_bytes, text, write_gguf
from vt_core.errors import ModelError

SMALL = gguf_bytes(
    {
        "general.architecture": "llama",
        "a.words": ["one", "", "drei ☺"],
        "a.scores": np.array([1.5, -2.0]),
        "a.n": 7,
    },
    {"t": Tensor.of(np.arange(6).reshape(2, 3)), "q": Tensor.of(np.ones((2, 32)), Q8_0)},
)


def open_bytes(tmp_path, data: bytes) -> GGUFFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return GGUFFile(path)


def refusal(tmp_path, data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        open_bytes(tmp_path, data)
    assert "model.gguf" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_of_every_type(tmp_path, version):
    scalars = {
        gguf.UINT8: 250, gguf.INT8: -3, gguf.UINT16: 65000, gguf.INT16: -300, gguf.UINT32: 2**32 - 1,
        gguf.INT32: -(2**31), gguf.FLOAT32: 1e-5, gguf.BOOL: True, gguf.UINT64: 2**64 - 1,
        gguf.INT64: -(2**63), gguf.FLOAT64: 0.1,
    }  # fmt: skip
    values = {f"k.{kind}": Typed(kind, value) for kind, value in scalars.items()}
    arrays = {"k.flags": np.array([True, False]), "k.ints": np.array([3, -4]), "k.words": ["a", "", "é"]}
    file = open_bytes(tmp_path, gguf_bytes({**values, **arrays, "k.text": "☺"}, version=version))

    for kind, value in scalars.items():
        assert file.metadata[f"k.{kind}"] == value
        assert type(file.metadata[f"k.{kind}"]) is type(value)
    assert file.metadata["k.flags"].tolist() == [True, False]
    assert file.metadata["k.ints"].tolist() == [3, -4]
    assert file.metadata["k.words"].decode() == ["a", "", "é"]
    assert len(file.metadata["k.words"]) == 3
    assert file.metadata["k.text"] == "☺"


def test_places_tensors_outermost_dimension_first(tmp_path):
    file = open_bytes(tmp_path, SMALL)
    tensor, quantized = file.tensors["t"], file.tensors["q"]
    assert tensor.shape == (2, 3)
    assert (tensor.row_bytes, tensor.nbytes) == (12, 24)
    assert np.frombuffer(file.read(tensor.offset, 24), "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert (quantized.type_name, quantized.row_bytes, quantized.nbytes) == ("Q8_0", 34, 68)
    assert quantized.offset == file.data_offset + 32
    assert file.header() == SMALL[: file.data_offset]


def test_alignment_of_the_file_counts(tmp_path):
    tensors = {"a": Tensor.of(np.ones(1)), "b": Tensor.of(np.full(1, 2))}
    file = open_bytes(tmp_path, gguf_bytes({"general.alignment": 128}, tensors))
    assert file.data_offset % 128 == 0
    assert file.tensors["b"].offset == file.data_offset + 128
    assert file.read(file.tensors["b"].offset, 4) == struct.pack("<f", 2)


def test_block_sizes_are_those_of_the_gguf_package():
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, (name, elements, size) in TENSOR_TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, *GGML_QUANT_SIZES[kind]) == (name, elements, size)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    for end in range(len(SMALL)):
        refusal(tmp_path, SMALL[:end])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_byte_is_read_or_refused_with_a_sentence(tmp_path_factory, data):
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(SMALL) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        file = GGUFFile(path)
        for value in file.metadata.values():
            if isinstance(value, StringArray):
                assert len(value.decode()) == len(value)
    except ModelError:
        return
    assert all(tensor.offset + tensor.nbytes <= len(SMALL) for tensor in file.tensors.values())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"GGUF", "4 bytes"),
        (gguf_bytes({}, magic=b"GGML"), "not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (gguf_bytes({}, version=1), "version 1"),
        (gguf_bytes({}, version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes({}, tensor_count=2**63), "9223372036854775808 tensors do not fit"),
        (gguf_bytes({}, key_count=2**63), "9223372036854775808 metadata keys do not fit"),
        (gguf_bytes({"a": 1, "b": 2}, key_count=3), "does not fit"),
        (gguf_bytes({"general.alignment": 0}), "alignment is 0"),
        (gguf_bytes({"general.alignment": 48}), "alignment is 48"),
        (gguf_bytes({"general.alignment": "x"}), "alignment is 'x'"),
        (gguf_bytes({"a": 1}) + gguf_bytes({}), None),
    ],
)
def test_refuses_a_wrong_preamble(tmp_path, data, words):
    if words is None:
        assert open_bytes(tmp_path, data).metadata == {"a": 1}
    else:
        assert words in refusal(tmp_path, data)


def with_value(raw: bytes) -> bytes:
    """A file with one key whose type and value are `raw`."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("key") + raw + bytes(64)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (struct.pack("<I", 13), "unknown type 13"),
        (struct.pack("<IQ", gguf.STRING, 2**62), f"claims {2**62} bytes"),
        (struct.pack("<I", gguf.STRING) + text(b"\xff\xfe"), "not UTF-8"),
        (struct.pack("<IIQ", gguf.ARRAY, gguf.UINT8, 2**62), f"claims {2**62} items"),
        (struct.pack("<IIQ", gguf.ARRAY, gguf.UINT64, 2**20), f"{2**20} values of key do not fit"),
        (struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, 2**20), f"{2**20} strings of key do not fit"),
        (struct.pack("<IIQQ", gguf.ARRAY, gguf.STRING, 1, 2**63), "last entry of key does not fit"),
        (struct.pack("<IIQQ", gguf.ARRAY, gguf.STRING, 2, 2**63), "entry 1 of key does not fit"),
        (struct.pack("<IIQ", gguf.ARRAY, gguf.ARRAY, 1), "unsupported type 9"),
        (struct.pack("<IIQ", gguf.ARRAY, 77, 1), "unsupported type 77"),
    ],
)
def test_refuses_absurd_metadata(tmp_path, raw, words):
    assert words in refusal(tmp_path, with_value(raw))


def test_array_text_that_is_not_utf8_is_refused_when_read(tmp_path):
    raw = struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, 2) + text("fine") + text(b"\xff")
    file = open_bytes(tmp_path, with_value(raw))
    with pytest.raises(ModelError, match="entry 1 of key is not UTF-8"):
        file.metadata["key"].decode()


def test_refuses_a_key_given_twice(tmp_path):
    one = text("key") + gguf.value(1)
    assert "given twice" in refusal(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + one + one)


def with_tensor(dimensions: list[int], kind: int = F32, offset: int = 0, rank: int | None = None) -> bytes:
    """A file with one tensor whose numbers may be absurd, and 96 bytes of data."""
    rank = len(dimensions) if rank is None else rank
    info = text("t") + struct.pack(f"<I{len(dimensions)}QIQ", rank, *dimensions, kind, offset)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    return header + bytes(-len(header) % 32) + bytes(96)


def test_reads_the_tensor_that_the_next_tests_damage(tmp_path):
    assert open_bytes(tmp_path, with_tensor([8], offset=64)).tensors["t"].nbytes == 32


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_tensor([8], rank=0), "0 dimensions"),
        (with_tensor([1] * 5), "5 dimensions"),
        (with_tensor([8], rank=2**31), f"{2**31} dimensions"),
        (with_tensor([0]), "shape"),
        (with_tensor([2**63, 2**63]), "cut off"),
        (with_tensor([25]), "needs bytes"),
        (with_tensor([8], offset=96), "needs bytes"),
        (with_tensor([8], offset=2**63), "needs bytes"),
        (with_tensor([8], offset=4), "multiple of 32"),
        (with_tensor([33], Q8_0), "blocks of 32"),
        (with_tensor([8], 4), "quantization type 4,"),
        (with_tensor([8], 1000), "quantization type 1000,"),
    ],
)
def test_refuses_absurd_tensors(tmp_path, data, words):
    assert words in refusal(tmp_path, data)


def test_refuses_two_tensors_of_one_name(tmp_path):
    data = gguf_bytes({}, {"t": Tensor.of(np.ones(8)), "u": Tensor.of(np.ones(8))})
    assert "two tensors named t" in refusal(tmp_path, data.replace(text("u"), text("t")))


def test_refuses_directories_and_missing_files(tmp_path):
    with pytest.raises(ModelError, match="cannot be opened"):
        GGUFFile(tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match="is not a file"):
        GGUFFile(tmp_path)


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", {}, {"t": Tensor.of(np.ones(64))})
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut while being read"):
        file.read(file.tensors["t"].offset, 256)
