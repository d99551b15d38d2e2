"""BitNet models in their published format: ternary weights, four to a byte, and activations in 8 bits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from tests import stock
from tests.tiny import write_model
from vt_core import load
from vt_core.errors import ModelError

torch = pytest.importorskip("torch")
PROMPT = [5, 17, 300, 42, 42, 980, 7]
AUTO = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
OLDER = {"quant_method": "bitnet"}
ONLINE = AUTO | {"quantization_mode": "online"}


def pack(ternary: np.ndarray) -> np.ndarray:
    """Four values to a byte, row by row: byte ``i`` holds rows ``i``, ``i + n/4``, …"""
    quarter = len(ternary) // 4
    packed = np.zeros((quarter, ternary.shape[1]), np.uint8)
    for row, values in enumerate(ternary):
        packed[row % quarter] |= ((values + 1).astype(np.uint8)) << 2 * (row // quarter)
    return packed


def write(directory, settings: dict):
    source = write_model(directory, "bitnet")
    stored = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name] = tensor
        if "_proj." in name and settings != ONLINE:
            scale = np.abs(tensor).mean()
            ternary = np.clip(np.round(tensor / scale), -1, 1)
            stored[name] = pack(ternary)
            value = 1 / scale if settings == OLDER else scale
            stored[f"{name}_scale"] = np.array([value], np.float32)
    save_file(stored, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return source


@pytest.fixture
def eager():
    """transformers compiles parts of its layers, which takes a compiler and minutes."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("settings", [AUTO, OLDER, ONLINE], ids=["offline", "older", "online"])
def test_ids_are_those_of_transformers(tmp_path, settings, eager):
    pytest.importorskip("accelerate")
    source = write(tmp_path / "in", settings)
    directory = convert(source, tmp_path / "out", progress=False)
    expected = stock.GENERATE["torch"](stock.LOAD["torch"](source, "float32"), PROMPT, 16, eos=[0, 2])[0]
    assert len(set(expected)) > 4
    for head in ("full", "prealloc"):
        model = load(directory, backend="torch", head=head, device="cpu", dtype="float32")
        result = model.generate(PROMPT, max_tokens=16)
        assert list(result.token_ids) == expected and result.stats.quantization == "bitnet"


def test_packed_weights_stay_packed_on_disk(tmp_path):
    source = write(tmp_path / "in", AUTO)
    directory = convert(source, tmp_path / "out", progress=False)
    weights = load_file(directory / "model.safetensors")
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype == np.uint8


def test_unpacking_reverses_packing():
    from vt_torch.ternary import unpacked

    ternary = np.random.default_rng(0).integers(-1, 2, (12, 5))
    assert (unpacked(torch.from_numpy(pack(ternary)), torch.float32).numpy() == ternary).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (AUTO | {"linear_class": "other"}, "of the kind 'other'"),
        (AUTO | {"use_rms_norm": True}, "with use_rms_norm, which vt does not read"),
        (ONLINE | {"modules_to_not_convert": ["mlp"]}, "with modules_to_not_convert, which vt does not read"),
    ],
)
def test_other_variants_are_refused(tmp_path, settings, words):
    source = write(tmp_path / "in", settings)
    with pytest.raises(ModelError, match=words):
        load(convert(source, tmp_path / "out", progress=False), backend="torch", device="cpu")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    source = write(tmp_path / "in", AUTO)
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight has the type U8 and the shape \[23, 48\]"):
        load(convert(broken, tmp_path / "out", progress=False), backend="torch", device="cpu")


def test_mlx_refuses_with_a_reason(tmp_path):
    pytest.importorskip("mlx.core")
    directory = convert(write(tmp_path / "in", AUTO), tmp_path / "out", progress=False)
    with pytest.raises(ModelError, match="only in a kernel for Metal"):
        load(directory, backend="mlx")
