from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.gguf import GGUFSource
from converters.gguf_file import GGUFFile
from converters.source import CHUNK_BYTES, TensorInfo
from tests.converters.gguf_tiny import HIDDEN, LAYERS, ROWS, metadata, weights
from tests.converters.gguf_writer import BF16, F16, F32, Q8_0, Tensor, write_gguf
from vt_core.errors import ModelError

TOKENS = [chr(ord("a") + i) for i in range(ROWS)]
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": [],
}


def write(tmp_path, *, embedding: int = F32, architecture: str = "llama", untied: bool = False, **keys):
    tensors = {name: Tensor.of(value, F32) for name, value in weights(architecture, untied=untied).items()}
    tensors["token_embd.weight"] = Tensor.of(weights(architecture)["token_embd.weight"], embedding)
    return write_gguf(tmp_path / "tiny.gguf", {**metadata(architecture), **VOCABULARY, **keys}, tensors)


def test_a_source_describes_itself(tmp_path):
    source = GGUFSource(write(tmp_path, embedding=Q8_0))
    assert (source.kind, source.name, source.default_dtype) == ("gguf", "tiny.gguf", "bfloat16")
    assert source.config["vocab_size"] == ROWS
    assert source.config["tie_word_embeddings"] is True
    infos = {info.name: info for info in source.tensors()}
    assert infos["model.embed_tokens.weight"] == TensorInfo(
        "model.embed_tokens.weight", "bfloat16", (ROWS, HIDDEN)
    )
    assert infos["model.norm.weight"].shape == (HIDDEN,)
    assert "lm_head.weight" not in infos
    assert len(infos) == 2 + 9 * LAYERS


def test_a_head_of_its_own_unties(tmp_path):
    source = GGUFSource(write(tmp_path, untied=True))
    assert source.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in {info.name for info in source.tensors()}


@pytest.mark.parametrize(
    ("embedding", "dtype"), [(F32, "float32"), (F16, "float16"), (BF16, "bfloat16"), (Q8_0, "bfloat16")]
)
def test_the_default_dtype_is_that_of_the_embedding(tmp_path, embedding, dtype):
    source = GGUFSource(write(tmp_path, embedding=embedding))
    assert source.default_dtype == source.config["torch_dtype"] == dtype
    assert {info.dtype for info in source.tensors()} == {dtype}


@pytest.mark.parametrize(("dtype", "storage"), [("float32", "<f4"), ("float16", "<f2"), ("bfloat16", "<u2")])
def test_chunks_are_whole_tensors_in_the_storage_type(tmp_path, dtype, storage):
    source = GGUFSource(write(tmp_path))
    for info in source.tensors():
        chunks = list(source.chunks(info.name, dtype))
        assert all(chunk.dtype == np.dtype(storage) and chunk.nbytes <= CHUNK_BYTES for chunk in chunks)
        assert np.concatenate(chunks).shape == info.shape


def test_an_unknown_dtype_is_refused(tmp_path):
    source = GGUFSource(write(tmp_path))
    with pytest.raises(ModelError, match="int7"):
        next(source.chunks("model.norm.weight", "int7"))


def test_the_fingerprint_is_that_of_the_file_not_of_its_place(tmp_path):
    path = write(tmp_path)
    fingerprint = GGUFSource(path).fingerprint()
    assert GGUFSource(path.rename(tmp_path / "other.gguf")).fingerprint() == fingerprint
    path = tmp_path / "other.gguf"
    before = path.stat()
    changed = path.read_bytes().replace(b"gpt2", b"GPT2", 1)
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert GGUFSource(path).fingerprint() != fingerprint, "another header"
    path.write_bytes(changed.replace(b"GPT2", b"gpt2", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert GGUFSource(path).fingerprint() == fingerprint
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert GGUFSource(path).fingerprint() != fingerprint, "another time"


def test_the_tokenizer_is_written(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    GGUFSource(write(tmp_path, **{"tokenizer.chat_template": "{{ messages }}"})).write_tokenizer(out)
    assert sorted(os.listdir(out)) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


def test_one_part_of_a_split_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="one of 3 parts"):
        GGUFSource(write(tmp_path, **{"split.count": 3}))


def test_more_tokens_than_rows_are_refused(tmp_path):
    with pytest.raises(ModelError, match=f"{ROWS + 1} tokens but only {ROWS} embedding rows"):
        GGUFSource(write(tmp_path, **{"tokenizer.ggml.tokens": [*TOKENS, "z"]}))


def test_tables_that_do_not_fit_the_metadata_are_refused(tmp_path):
    values = weights("llama", untied=True)
    values["output.weight"] = values["output.weight"][:-1]
    tensors = {name: Tensor.of(value) for name, value in values.items()}
    path = write_gguf(tmp_path / "tiny.gguf", {**metadata("llama"), **VOCABULARY}, tensors)
    with pytest.raises(ModelError, match=r"output.weight has the shape \[11, 32\], not \[12, 32\]"):
        GGUFSource(path)
    path = write_gguf(
        tmp_path / "tiny.gguf", {**metadata("llama", embedding_length=2 * HIDDEN), **VOCABULARY}, {}
    )
    with pytest.raises(ModelError):
        GGUFSource(path)


def test_an_unsupported_architecture_is_refused_before_its_metadata_are_read(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", {"general.architecture": "rwkv7"})
    with pytest.raises(ModelError, match="'rwkv7'"):
        GGUFSource(path)


@pytest.mark.parametrize("value", [7, "text", True, 1.5, [], ["a", "b"], np.array([1, 2]), np.array([1.5])])
@pytest.mark.parametrize(
    "key",
    [
        *metadata("llama"),
        *VOCABULARY,
        *("general.alignment", "split.count", "tokenizer.chat_template", "llama.expert_count"),
        *("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.attention.key_length"),
        *(f"tokenizer.ggml.{name}" for name in ("token_type", "scores", "add_bos_token", "add_eos_token")),
        *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "padding", "unknown", "eot")),
    ],
)
def test_a_value_of_another_type_is_used_or_refused_with_a_sentence(tmp_path, key, value):
    path = write(tmp_path, **{key: value})
    try:
        GGUFSource(path).write_tokenizer(tmp_path)
    except ModelError as error:
        assert str(path) in str(error)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_header_is_converted_or_refused_with_a_sentence(tmp_path_factory, data):
    out = tmp_path_factory.getbasetemp() / "damaged"
    out.mkdir(exist_ok=True)
    path = write(out)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, GGUFFile(path).data_offset - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        source = GGUFSource(path)
        infos = source.tensors()
        for info in infos:
            assert sum(len(chunk) for chunk in source.chunks(info.name, "float32")) == info.shape[0]
        source.write_tokenizer(out)
    except ModelError as error:
        assert str(path) in str(error)
