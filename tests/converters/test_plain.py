"""Copies of models with more rows: stock frameworks load them, and all else stays as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from converters import convert
from converters.plain import plain_model, with_mean_rows
from tests.converters.tiny import PER_LAYER, VOCAB, bfloat16, config, llama, with_per_layer, write_model
from vt_core.errors import ModelError
from vt_core.files.dtypes import to_float32
from vt_core.files.model_dir import ModelDirectory


def tensors(path):
    return {name: tensor.float().numpy() for name, tensor in load_file(path / "model.safetensors").items()}


def nothing(out):
    pass


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (False, True)])
def test_new_rows_are_the_mean_of_their_parts(tied, bias, tmp_path):
    source = write_model(tmp_path / "hf", llama(tied, bias), tie_word_embeddings=tied)
    parts = {VOCAB: (1, 2), VOCAB + 2: (3, 4, 5)}
    plain_model(source).write_with_rows(tmp_path / "out", parts, nothing)
    before, after = tensors(source), tensors(tmp_path / "out")
    tables = {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"}
    assert before.keys() == after.keys()
    for name, values in before.items():
        if name not in tables:
            assert np.array_equal(after[name], values)
            continue
        assert len(after[name]) == VOCAB + 3 and np.array_equal(after[name][:VOCAB], values)
        for row, ids in parts.items():
            mean = values[list(ids)].mean(axis=0)
            np.testing.assert_allclose(after[name][row], mean, rtol=1 / 128, atol=1e-3)
        assert np.array_equal(after[name][VOCAB + 1], values[-1])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == VOCAB + 3
    manifest = ModelDirectory.open(convert(tmp_path / "out", tmp_path / "vt", progress=False)).manifest
    assert (manifest.vocab_rows, manifest.tied) == (VOCAB + 3, tied)


def test_padding_rows_are_used_before_the_table_grows():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    chunks = (rows[start : start + 2].copy() for start in range(0, 6, 2))
    grown = np.concatenate(list(with_mean_rows(chunks, "float32", 7, {5: (0, 1), 6: (2, 4)})))
    assert grown[:5].tolist() == rows[:5].tolist()
    assert grown[5:].tolist() == [[1, 2], [6, 7]]


def test_means_are_rounded_to_the_storage_type():
    values = bfloat16(np.array([[1.0], [2.0]], np.float32))
    grown = np.concatenate(list(with_mean_rows(iter([values]), "bfloat16", 3, {2: (0, 1)})))
    assert to_float32(grown, "bfloat16").ravel().tolist() == [1.0, 2.0, 1.5]


def test_a_model_directory_and_its_source_give_the_same_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    source = write_model(tmp_path / "hf")
    made = convert(source, tmp_path / "vt", progress=False)
    for name, path in (("a", source), ("b", made)):
        plain_model(path).write_with_rows(tmp_path / name, {VOCAB: (1, 2)}, nothing)
    one, other = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_failed_tokenizer_leaves_nothing(tmp_path):
    def fail(out):
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        plain_model(write_model(tmp_path / "hf")).write_with_rows(tmp_path / "out", {VOCAB: (1, 2)}, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_quantized_models_and_taken_paths_are_refused(tmp_path):
    source = write_model(tmp_path / "hf")
    with pytest.raises(ModelError, match="exists"):
        plain_model(source).write_with_rows(source, {VOCAB: (1, 2)}, nothing)
    (source / "config.json").write_text(json.dumps(config(quantization={"bits": 4, "group_size": 64})))
    with pytest.raises(ModelError, match="is quantized"):
        plain_model(source)


def test_a_table_for_the_layers_does_not_grow(tmp_path):
    model = plain_model(write_model(tmp_path / "hf", with_per_layer(), **PER_LAYER))
    with pytest.raises(ModelError, match="embed_tokens_per_layer"):
        model.check_growth()
