from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.hub import find_commit, is_hub_id
from converters.huggingface import HuggingFaceSource
from converters.source import CHUNK_BYTES, TensorInfo
from converters.tokenizer_json import digest, without_merges
from tests.converters import tiny
from vt_core.errors import ModelError, TokenizerError
from vt_core.vocab.token_bytes import tokenizer_digest


def values(source: HuggingFaceSource, name: str, dtype: str) -> np.ndarray:
    return np.concatenate([chunk.copy() for chunk in source.chunks(name, dtype)])


@pytest.mark.parametrize("shards", [1, 2])
def test_reads_a_directory(tmp_path: Path, shards: int) -> None:
    tensors = tiny.llama(tied=False)
    source = HuggingFaceSource(tiny.write_model(tmp_path / "Tiny-1M", tensors, shards=shards))
    assert (source.kind, source.name, source.default_dtype) == ("huggingface", "Tiny-1M", "bfloat16")
    assert source.config == tiny.config()
    assert source.generation_config == {"eos_token_id": tiny.VOCAB - 1}
    dtypes = {"uint16": "bfloat16"}
    assert set(source.tensors()) == {
        TensorInfo(name, dtypes.get(tensor.dtype.name, tensor.dtype.name), tensor.shape)
        for name, tensor in tensors.items()
    }
    for info in source.tensors():
        np.testing.assert_array_equal(
            values(source, info.name, info.dtype).ravel(), tensors[info.name].ravel()
        )


def test_a_whole_file_wins_over_an_index(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m", shards=2)
    tiny.save(path / "model.safetensors", {"only": np.zeros(3, "<f4")})
    assert [info.name for info in HuggingFaceSource(path).tensors()] == ["only"]


def test_tensors_that_the_index_does_not_place_are_left_out(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m", shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    names = {info.name for info in HuggingFaceSource(path).tensors()}
    assert names == set(tiny.llama()) - {"model.norm.weight"}


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_floats_are_converted_to_nearest(tmp_path: Path, stored: str, wanted: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    numpy_types = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    truth = tiny.random(8, 6, 5).astype(numpy_types.get(stored, stored))
    carried = truth.view("<u2") if stored == "bfloat16" else truth
    path = tiny.write_model(tmp_path / "m", {**tiny.llama(), "x": carried})
    got = values(HuggingFaceSource(path), "x", wanted)
    expected = truth.astype(np.float32).astype(numpy_types.get(wanted, wanted))
    np.testing.assert_array_equal(got, expected.view("<u2") if wanted == "bfloat16" else expected)


def test_chunks_stay_small_when_values_grow(tmp_path: Path) -> None:
    rows = np.zeros((3000, 2048), "<u2")
    source = HuggingFaceSource(tiny.write_model(tmp_path / "m", {"model.embed_tokens.weight": rows}))
    for dtype, item in (("bfloat16", 2), ("float32", 4)):
        sizes = [chunk.nbytes for chunk in source.chunks("model.embed_tokens.weight", dtype)]
        assert len(sizes) > 1 and max(sizes) <= CHUNK_BYTES
        assert sum(sizes) == rows.size * item


def test_tokenizer_files_are_copied_as_they_are(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m")
    (path / "pytorch_model.bin").write_bytes(b"x")
    (path / "modeling_custom.py").write_text("raise SystemExit")
    templates = "additional_chat_templates"
    (path / templates).mkdir()
    (path / templates / "tool_use.jinja").write_text("{{ tools }}")
    (path / templates / "notes.txt").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    HuggingFaceSource(path).write_tokenizer(out)
    assert {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        f"{templates}/tool_use.jinja",
    }
    assert (out / "tokenizer.json").read_text() == tiny.tokenizer_json()


def test_fingerprint_changes_with_every_file(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m", shards=2)
    prints = [HuggingFaceSource(path).fingerprint()]
    assert HuggingFaceSource(path).fingerprint() == prints[0]
    for name in ("config.json", "tokenizer.json", "model-00002-of-00002.safetensors"):
        status = (path / name).stat()
        os.utime(path / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
        prints.append(HuggingFaceSource(path).fingerprint())
    (path / "chat_template.jinja").unlink()
    prints.append(HuggingFaceSource(path).fingerprint())
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    prints.append(HuggingFaceSource(path).fingerprint())
    assert len(set(prints)) == 6


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m")
    before = HuggingFaceSource(path).fingerprint()
    path.rename(tmp_path / "n")
    assert HuggingFaceSource(tmp_path / "n").fingerprint() == before


def _index(value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(value))

    return change


def _weights_replaced(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "model.safetensors").rename(path / name)

    return change


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(tiny.config(**changes)))

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (
        lambda path: (path / "config.json").unlink(),
        "is not a Hugging Face model: it holds no config.json",
    ),
    "broken config": (
        lambda path: (path / "config.json").write_text("{"),
        "config.json: not a model configuration",
    ),
    "no weights": (
        lambda path: (path / "model.safetensors").unlink(),
        "holds no weights: neither model.safetensors",
    ),
    "pickles only": (
        _weights_replaced("pytorch_model.bin"),
        "holds pickled PyTorch weights only, .*save_pretrained",
    ),
    "GGUF inside": (_weights_replaced("tiny.gguf"), r"give the GGUF file itself: .*tiny\.gguf"),
    "gptq": (
        _config(quantization_config={"bits": 4}),
        r"quantized model \(quantization_config in config.json\)",
    ),
    "mlx": (_config(quantization={"bits": 4}), r"quantized model \(quantization in config.json\)"),
    "empty index": (_index({}), "has no weight_map"),
    "list as weight_map": (_index({"weight_map": ["a"]}), "has no weight_map"),
    "index leads outside": (
        _index({"weight_map": {"a": "../x.safetensors"}}),
        "places 'a' in '../x.safetensors'",
    ),
    "index names a pickle": (
        _index({"weight_map": {"a": "x.bin"}}),
        "places 'a' in 'x.bin', which is not a safetensors",
    ),
    "index names a number": (_index({"weight_map": {"a": 3}}), "places 'a' in 3"),
    "shard missing": (
        _index({"weight_map": {"a": "x.safetensors"}}),
        "index.json names x.safetensors, which is missing",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_sentence(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    path = tiny.write_model(tmp_path / "m")
    spoil(path)
    with pytest.raises(ModelError, match=sentence) as caught:
        HuggingFaceSource(path)
    assert str(path) in str(caught.value)


def test_shard_without_the_tensor(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m")
    _index({"weight_map": {"a": "x.safetensors"}})(path)
    tiny.save(path / "x.safetensors", {"b": np.zeros(1, "<f4")})
    with pytest.raises(
        ModelError, match=r"x.safetensors does not hold 'a', which model.safetensors.index.json"
    ):
        HuggingFaceSource(path)


def test_no_tokenizer(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "m")
    (path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json\. Write one with transformers"):
        HuggingFaceSource(path).write_tokenizer(tmp_path)


MERGES = {
    "none": None,
    "empty": [],
    "texts": ['! "', "\\ ]", "[ #"],
    "pairs": [["!", "]"], ["\\", '"'], ["[", "\u2028"]],
    "brackets": ["] ]", "[[ ["],
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("merges", MERGES.values(), ids=MERGES)
def test_digest_does_not_need_the_merges(tmp_path: Path, merges: Any, indent: int | None) -> None:
    data = json.loads(tiny.tokenizer_json())
    data["model"]["vocab"]['"merges": ["'] = tiny.VOCAB
    data["model"].pop("merges")
    if merges is not None:
        data["model"]["merges"] = merges
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=False))
    slim = json.loads(without_merges(path.read_bytes()))
    assert slim["model"].pop("merges", []) == []
    assert slim["model"]["vocab"] == data["model"]["vocab"]
    assert digest(path) == tokenizer_digest(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', '{"model": {"merges": [1], "vocab": {}}'])
def test_digest_of_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        digest(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("gpt2", True),
        ("a/b/c", False),
        ("./model", False),
        ("/tmp/model", False),
        ("../model", False),
        ("~/model", False),
        ("model.gguf", False),
        ("", False),
    ],
)
def test_hub_ids(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_a_commit_is_its_own_revision() -> None:
    assert find_commit("a/b", "0123456789" * 4) == "0123456789" * 4
