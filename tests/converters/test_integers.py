"""Directories that are quantized for PyTorch: what is stored, and where it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from converters import convert
from converters.directory import DirectorySource
from converters.safetensors_io import read_header
from tests.converters import tiny as plain
from tests.converters.gguf_tiny import weights
from tests.tiny import write_model
from vt_core.cli import build
from vt_core.errors import ModelError, OptionError
from vt_core.files import integers
from vt_core.files.dtypes import to_float32
from vt_core.files.model_dir import ModelDirectory

SIZES = {"hidden_size": 64, "intermediate_size": 128}
LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("mode", integers.MODES)
@pytest.mark.parametrize("kind", ["llama", "qwen2"], ids=["tied", "untied"])
def test_layers_and_head_are_integers(kind, mode, tmp_path):
    pytest.importorskip("torch")
    source = write_model(tmp_path / "in", kind, "float32", **SIZES)
    directory = ModelDirectory.open(convert(source, tmp_path / "out", quantize=mode, progress=False))
    manifest, floats = directory.manifest, load_file(source / "model.safetensors")
    assert (manifest.integers, directory.quantization, manifest.tied) == (mode, mode, kind == "llama")
    stored = read_header(directory.path / "model.safetensors")
    matrix = floats[f"{LAYER}.weight"]
    if mode == "int8":
        expected = integers.quantize_rows(matrix, integers.row_scales(matrix))
    else:
        expected = integers.quantize_groups(matrix, *integers.group_scales(matrix, 64))
    assert stored[f"{LAYER}.scales"].info.dtype == "bfloat16" and f"{LAYER}.weight" not in stored
    assert stored["model.norm.weight"].info.dtype == "float32"
    with (directory.path / "model.safetensors").open("rb") as file:
        entry = stored[f"{LAYER}.numbers"]
        file.seek(entry.start)
        assert file.read(entry.size) == expected.tobytes()
    ids = np.arange(manifest.vocab_rows)
    head = floats["model.embed_tokens.weight" if manifest.tied else "lm_head.weight"]
    scales = integers.row_scales(head, "float32")
    with directory.open_store() as store:
        assert set(store.tables) == {"embedding", "head", "head_scales"}
        embedding = store.tables["embedding"].read(ids)
        np.testing.assert_array_equal(embedding, floats["model.embed_tokens.weight"])
        np.testing.assert_array_equal(store.tables["head_scales"].read(ids)[:, 0], scales)
        np.testing.assert_array_equal(store.tables["head"].read(ids), integers.quantize_rows(head, scales))


def test_a_gguf_file_and_its_model_directory_give_the_same(tmp_path):
    source = plain.write_gguf_model(tmp_path / "m.gguf", weights("llama"))
    floats = convert(source, tmp_path / "floats", progress=False)
    made = [
        ModelDirectory.open(convert(path, tmp_path / name, quantize="int8", progress=False)).manifest
        for name, path in (("a", source), ("b", floats))
    ]
    names = set(made[0].files) - {"vocab.lmdb/data.mdb"}
    assert {name: made[0].files[name] for name in names} == {name: made[1].files[name] for name in names}
    assert made[0].tables == made[1].tables
    assert made[0].source.name == made[1].source.name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_float_type_concerns_what_stays_floats(dtype, tmp_path):
    source = plain.write_model(tmp_path / "in")
    directory = ModelDirectory.open(
        convert(source, tmp_path / "out", quantize="int8", dtype=dtype, progress=False)
    )
    types = {info.info.dtype for info in read_header(directory.path / "model.safetensors").values()}
    assert types == {dtype, "int8", "bfloat16", "int64"} and directory.manifest.dtype == dtype
    ids = np.arange(directory.manifest.vocab_rows)
    assert directory.manifest.tied
    with directory.open_store() as store:
        scales = integers.row_scales(to_float32(store.tables["embedding"].read(ids), dtype), "float32")
        np.testing.assert_array_equal(store.tables["head_scales"].read(ids)[:, 0], scales)


def test_routers_experts_and_positions_stay_floats(tmp_path):
    pytest.importorskip("torch")
    source = write_model(tmp_path / "in", "qwen3_moe")
    directory = convert(source, tmp_path / "out", quantize="int8", progress=False)
    stored = read_header(directory / "model.safetensors")
    quantized = {name.rsplit(".", 2)[1] for name in stored if name.endswith(".numbers")}
    assert quantized == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_quantized_sources_are_refused(tmp_path):
    again = plain.write_model(tmp_path / "again", quantization={"bits": 4, "group_size": 32})
    with pytest.raises(OptionError, match=r"quantized already \(MLX's format\).*leave --quantize out"):
        convert(again, tmp_path / "out", quantize="int8")
    with pytest.raises(OptionError, match="'int3' is not one of int8, int4"):
        convert(plain.write_model(tmp_path / "in"), tmp_path / "out", quantize="int3")
    out = convert(tmp_path / "in", tmp_path / "out", quantize="int8", progress=False)
    for how in ("int8", 4):
        with pytest.raises(
            ModelError, match=r"quantized \(int8\), which only vt-torch reads; use the original"
        ):
            convert(out, tmp_path / "more", quantize=how)
    with pytest.raises(ModelError, match="use the original weights"):
        DirectorySource(ModelDirectory.open(out))


def test_command(tmp_path):
    source = plain.write_model(tmp_path / "in")
    run = CliRunner().invoke
    command = build("torch")
    wrong = run(
        command, ["convert", str(source), str(tmp_path / "o"), "--quantize", "int8", "--group-size", "32"]
    )
    assert wrong.exit_code == 2 and "--group-size goes with --quantize 4, 5, 6, 8" in wrong.output
    done = run(command, ["convert", str(source), str(tmp_path / "out"), "--quantize", "int4"])
    assert done.exit_code == 0, done.output
    said = run(command, ["inspect", str(tmp_path / "out")]).stdout
    assert "int4, for vt-torch; the head in 8 bits, whose text exact decoding gives" in said
    report = json.loads(run(command, ["inspect", str(tmp_path / "out"), "--json"]).stdout)
    assert report["quantization"] == {"method": "int4", "tables": {"head": {"bits": 8}}}
