"""Weights that are quantized already: kept as they are, the tables' rows in the store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from converters import convert
from converters.safetensors_io import read_chunks, read_header
from tests.converters import tiny
from vt_core.errors import ModelError
from vt_core.files import packing
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import Quantization

HIDDEN = 64
EMBEDDING, HEAD, LAYER = "model.embed_tokens", "lm_head", "model.layers.0.mlp.up_proj"


def packed(seed: int, rows: int, bits: int, group_size: int, module: str) -> dict[str, np.ndarray]:
    words, scales, biases = packing.quantize(tiny.random(seed, rows, HIDDEN), bits, group_size)
    return {
        f"{module}.weight": words,
        f"{module}.scales": tiny.bfloat16(scales),
        f"{module}.biases": tiny.bfloat16(biases),
    }


def tensors(embedding: tuple[int, int] | None, head: tuple[int, int] | None) -> dict[str, np.ndarray]:
    """Of an untied model; None: a table of floats."""
    parts = packed(3, 32, 4, 32, LAYER) | {"model.norm.weight": tiny.bfloat16(tiny.random(4, HIDDEN))}
    for seed, module, how in ((1, EMBEDDING, embedding), (2, HEAD, head)):
        if how is None:
            parts[f"{module}.weight"] = tiny.bfloat16(tiny.random(seed, tiny.VOCAB, HIDDEN))
        else:
            parts |= packed(seed, tiny.VOCAB, *how, module)
    return parts


def write(path: Path, parts: dict[str, np.ndarray], tied: bool = False, **changes) -> Path:
    settings = {"bits": 4, "group_size": 32}
    changes = {"quantization": settings, "quantization_config": settings, "hidden_size": HIDDEN} | changes
    return tiny.write_model(path, parts, tie_word_embeddings=tied, **changes)


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    ("embedding", "head"), [((4, 32), (4, 32)), ((5, 64), (8, 32)), (None, (6, 64)), ((2, 32), None)]
)
def test_rows_are_stored_packed_and_the_body_is_kept(embedding, head, dtype, tmp_path):
    parts = tensors(embedding, head)
    directory = ModelDirectory.open(convert(write(tmp_path / "in", parts), tmp_path / "out", dtype=dtype))
    manifest, floats = directory.manifest, dtype or "bfloat16"
    assert (manifest.hidden, manifest.dtype, manifest.vocab_rows) == (HIDDEN, floats, tiny.VOCAB)
    expected = {
        name: Quantization(*how, floats)
        for name, how in (("embedding", embedding), ("head", head))
        if how is not None
    }
    assert manifest.quantization == expected
    assert "quantization_config" not in directory.config and directory.config["quantization"]["bits"] == 4
    with directory.open_store() as store:
        for name, how in expected.items():
            rows = store.tables[name].read(np.arange(tiny.VOCAB))
            module = {"embedding": EMBEDDING, "head": HEAD}[name]
            words, *others = packing.split_rows(rows, how)
            np.testing.assert_array_equal(words, parts[f"{module}.weight"])
            for part, kind in zip(others, ("scales", "biases"), strict=True):
                stored = parts[f"{module}.{kind}"]
                if dtype == "float32":
                    stored = (stored.astype(np.uint32) << 16).view(np.float32)
                np.testing.assert_array_equal(part, stored)
    body = read_header(directory.path / "model.safetensors")
    assert set(body) == {"model.norm.weight", *(f"{LAYER}.{part}" for part in ("weight", "scales", "biases"))}
    (words,) = read_chunks(directory.path / "model.safetensors", body[f"{LAYER}.weight"], 1 << 20)
    assert words.tobytes() == parts[f"{LAYER}.weight"].tobytes()


def test_chunks_of_any_size_are_joined_to_rows(tmp_path, monkeypatch):
    source = write(tmp_path / "in", tensors((4, 32), (5, 64)))
    whole = ModelDirectory.open(convert(source, tmp_path / "whole")).manifest.tables
    monkeypatch.setattr("converters.huggingface.CHUNK_BYTES", 100)
    assert ModelDirectory.open(convert(source, tmp_path / "pieces")).manifest.tables == whole


def test_a_tied_model_may_hold_its_table_twice(tmp_path):
    parts = tensors((4, 32), None)
    del parts[f"{HEAD}.weight"]
    copies = {name.replace(EMBEDDING, HEAD): part for name, part in parts.items() if EMBEDDING in name}
    directory = ModelDirectory.open(convert(write(tmp_path / "in", parts | copies, True), tmp_path / "out"))
    assert directory.manifest.tied and set(directory.manifest.quantization) == {"embedding"}
    assert not any("lm_head" in name for name in read_header(directory.path / "model.safetensors"))
    copies[f"{HEAD}.biases"] = copies[f"{HEAD}.biases"][::-1].copy()
    with pytest.raises(ModelError, match=r"ties head and embedding, but .* differ"):
        convert(write(tmp_path / "other", parts | copies, True), tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "in the mode 'mxfp4'"),
        (
            {"quantization": {"bits": 4, "group_size": 32, HEAD: {"mode": "nvfp4"}}},
            "lm_head.weight is quantized in the mode 'nvfp4'",
        ),
        ({"quantization": {"bits": 4}}, "not in mlx-lm's layout"),
        ({"hidden_size": ..., "quantization": {"bits": 8, "group_size": 32}}, "rows of another length"),
        ({"hidden_size": 48, "quantization": {"bits": 7, "group_size": 32}}, "rows of another length"),
    ],
)
def test_other_formats_are_refused_by_name(changes, sentence, tmp_path):
    source = write(tmp_path / "in", tensors((4, 32), (4, 32)), **changes)
    with pytest.raises(ModelError, match=sentence):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_width_may_be_what_the_settings_make_it(tmp_path):
    settings = {"bits": 4, "group_size": 32, HEAD: {"bits": 5, "group_size": 64}}
    for number, hidden in enumerate((..., 48)):
        source = write(
            tmp_path / f"in{number}",
            tensors((4, 32), (5, 64)),
            hidden_size=hidden,
            quantization=settings,
        )
        manifest = ModelDirectory.open(convert(source, tmp_path / f"out{number}")).manifest
        assert manifest.hidden == HIDDEN and manifest.quantization["head"].bits == 5


def test_tensors_that_do_not_form_a_packed_matrix_are_refused(tmp_path):
    good = tensors((4, 32), (4, 32))
    wrong = {
        "their shapes do not belong together": {f"{HEAD}.scales": good[f"{HEAD}.scales"][:-1]},
        "they hold float32": {f"{HEAD}.weight": good[f"{HEAD}.weight"].view(np.float32)},
        "without biases": {f"{HEAD}.biases": None},
    }
    for number, (sentence, change) in enumerate(wrong.items()):
        parts = {name: part for name, part in {**good, **change}.items() if part is not None}
        with pytest.raises(ModelError, match=sentence):
            convert(write(tmp_path / f"in{number}", parts), tmp_path / "out")


def test_the_manifest_says_how_the_tables_are_packed(tmp_path):
    path = convert(write(tmp_path / "in", tensors((4, 32), None)), tmp_path / "out")
    written = json.loads((path / "vt.json").read_text())["quantization"]
    assert written == {"embedding": {"bits": 4, "group_size": 32, "dtype": "bfloat16", "mode": "affine"}}
