"""Converting and writing back gives the tensors of the source."""

from __future__ import annotations

import json

import numpy as np
import pytest

from converters import convert
from converters.directory import table_names
from converters.export import export, stock_copy
from converters.safetensors_io import read_chunks, read_header
from tests.tiny import ARCHITECTURES, KINDS
from vt_core.errors import ModelError
from vt_core.files.model_dir import ModelDirectory


def tensors(path):
    return {
        name: (entry.info, b"".join(chunk.tobytes() for chunk in read_chunks(path, entry, 1 << 16)))
        for name, entry in read_header(path).items()
    }


@pytest.mark.parametrize(
    "kind", [*KINDS, "gemma3-multimodal", "gemma3n", "gemma4", "gemma4-multimodal", "phi", "gpt_neox", "gpt2"]
)
def test_export_equals_the_converted_source(kind, tiny, tmp_path):
    assert kind in {**KINDS, **ARCHITECTURES}
    source, model = tiny(kind)
    directory = ModelDirectory.open(model)
    export(directory, tmp_path / "back")
    expected = tensors(source / "model.safetensors")
    found = tensors(tmp_path / "back" / "model.safetensors")
    assert found == expected
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["tie_word_embeddings"] == directory.manifest.tied
    assert not (tmp_path / "back" / "vt.json").exists()


def test_a_copy_is_written_once_and_converts_to_the_same_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    directory = ModelDirectory.open(tiny("qwen2")[1])
    copy = stock_copy(directory)
    written = (copy / "model.safetensors").stat().st_mtime_ns
    assert stock_copy(directory) == copy and (copy / "model.safetensors").stat().st_mtime_ns == written
    again = ModelDirectory.open(convert(copy, tmp_path / "again", progress=False))
    assert again.manifest.tables == directory.manifest.tables
    ids = np.arange(5)
    with again.open_store() as one, directory.open_store() as other:
        assert np.array_equal(one.tables["head"].read(ids), other.tables["head"].read(ids))


def test_names_follow_the_layers_and_the_model_type():
    assert table_names("falcon", ["transformer.h.0.x"])["embedding"] == "transformer.word_embeddings.weight"
    assert table_names("bloom", ["h.0.x"])["embedding"] == "word_embeddings.weight"
    with pytest.raises(ModelError, match="rwkv"):
        table_names("rwkv", ["blocks.0.x"])
