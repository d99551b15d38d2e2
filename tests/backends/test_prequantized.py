"""Models whose layers are already quantized (GPTQ, AWQ, compressed-tensors), with tables in floats."""

from __future__ import annotations

import importlib.util
import json
import shutil
import weakref

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from converters import convert
from tests import stock
from tests.conftest import backend_params
from tests.prequantized import SETTINGS, write_prequantized
from tests.tiny import ARCHITECTURES
from vt_core import load
from vt_core.cli import build
from vt_core.errors import BackendError, ModelError, OptionError

PROMPT = [5, 17, 300, 42, 42, 980, 7]
LAYER = "model.layers.1.self_attn.q_proj"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
#: Backends that run each layout, and the package that is needed.
RUNS = {
    ("mlx", "awq"): None,
    ("torch", "awq"): None,
    ("torch", "gptq"): None,
    ("torch", "compressed-tensors"): "compressed_tensors",
}

every_kind = pytest.mark.parametrize("kind", SETTINGS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(kind)``: the packed directory, one of its floats, and the model directory; made once."""
    done: dict = {}

    def make(kind):
        if kind not in done:
            packed, floats = write_prequantized(tmp_path_factory.mktemp(kind), kind)
            done[kind] = packed, floats, convert(packed, packed.parent / "vt", progress=False)
        return done[kind]

    return make


def method_of(kind):
    return SETTINGS[kind]["quant_method"]


@every_kind
def test_conversion_keeps_packed_layers_and_stores_tables(kind, made):
    packed, _, directory = made(kind)
    before, after = (load_file(path / "model.safetensors") for path in (packed, directory))
    assert before.keys() - after.keys() == set(TABLES)
    assert sum(part.dtype == "int32" for part in after.values()) >= 3 * 7
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype and (tensor == before[name]).all(), name


@every_kind
@pytest.mark.parametrize("backend", backend_params())
def test_ids_equal_those_of_dequantized_weights_or_are_refused(kind, backend, made):
    _, floats, directory = made(kind)
    method = method_of(kind)
    package = RUNS.get((backend, method), "no")
    if package is not None and importlib.util.find_spec(package) is None:
        needed = "for which transformers needs compressed-tensors"
        with pytest.raises((BackendError, ModelError), match=f"mlx-lm does not read layers|{needed}"):
            load(directory, backend=backend)
        return
    original = stock.LOAD[backend](floats, "float32")
    expected = stock.GENERATE[backend](original, PROMPT, 24, eos=[0, 2])[0]
    assert len(set(expected)) >= 8
    for head in ("full", "prealloc"):
        model = load(directory, backend=backend, head=head, device="cpu", dtype="float32")
        model.decoder.head.set_static(range(0, 300, 2))
        result = model.generate(PROMPT, max_tokens=24)
        assert list(result.token_ids) == expected and result.stats.quantization == method


@every_kind
def test_inspect_names_the_layout(kind, made):
    done = CliRunner().invoke(build("torch"), ["inspect", str(made(kind)[2])])
    assert f"quantized    {method_of(kind)}; the tables are not" in done.stdout


@every_kind
def test_quantizing_again_is_refused(kind, made, tmp_path):
    packed, _, directory = made(kind)
    method = method_of(kind)
    for options, name in (({"quantize": 4}, "--quantize"), ({"dtype": "bfloat16"}, "--dtype")):
        with pytest.raises(OptionError, match=rf"quantized already \({method}\).*leave {name} out"):
            convert(packed, tmp_path / "again", progress=False, **options)
    pytest.importorskip("torch")
    with pytest.raises(OptionError, match=rf"quantized already \({method}\); leave --quantize out"):
        load(directory, backend="torch", quantize="int8")


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if method_of(kind) in ("gptq", "awq")])
def test_four_bits_stay_four_bits(kind, made):
    torch = pytest.importorskip("torch")
    from vt_torch.quantized import Int4Linear

    directory = made(kind)[2]
    decoder = load(directory, backend="torch", device="cpu").decoder
    packed = kind not in ("gptq-ordered-by-activation", "gptq-8bit")
    # The kernel's type, or what float layers run well in.
    assert decoder.dtype == ("bfloat16" if packed else "float32")
    layers = [module for name, module in decoder._model.named_modules() if name.endswith("_proj")]
    assert {type(layer) for layer in layers} == {Int4Linear if packed else torch.nn.Linear}
    assert len(layers) == 3 * 7
    # The run's type rounds scales, and nothing else.
    floats = load_file(made(kind)[1] / "model.safetensors")
    for name, module in decoder._model.named_modules():
        if name.endswith("_proj"):
            expected = torch.from_numpy(floats[f"{name}.weight"]).float()
            torch.testing.assert_close(module.weight.float(), expected, rtol=0.02, atol=0.05)
    texts = []
    for head in ("full", "prealloc"):
        model = load(directory, backend="torch", head=head, device="cpu")
        model.decoder.head.set_static(range(0, 300, 2))
        texts.append(model.generate(PROMPT, max_tokens=24).token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gptq", {"bits": 3}, "holds gptq layers of 3 bits in the form 'gptq'"),
        ("gptq", {"checkpoint_format": "marlin"}, "gptq layers of 4 bits in the form 'marlin'"),
        ("awq", {"version": "gemv"}, "awq layers of 4 bits in the form 'gemv'"),
        ("gptq", {"bits": 4.0}, "holds gptq layers of 4.0 bits"),
        ("gptq", {"checkpoint_format": 5}, "gptq layers of 4 bits in the form '5'"),
        ("gptq", {"format": "marlin"}, "gptq layers of 4 bits in the form 'marlin'"),
        ("gptq", {"bits": 8}, "does not fit a layer of 128 inputs and 64 outputs with 8 bits"),
    ],
)
def test_unknown_variants_are_refused(kind, changes, said, made, tmp_path):
    pytest.importorskip("torch")
    packed = shutil.copytree(made(kind)[0], tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] |= changes
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        load(convert(packed, tmp_path / "vt", progress=False), backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gptq-v2", {"checkpoint_format": None, "format": "gptq_v2"}),
        ("gptq-v2", {"checkpoint_format": "GPTQ_V2"}),
        ("awq", {"version": "GEMM"}),
        ("awq", {"version": None, "format": "gemm"}),
    ],
)
def test_variant_names_of_older_files_and_in_capitals(kind, settings, made, tmp_path):
    pytest.importorskip("torch")
    packed = shutil.copytree(made(kind)[0], tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] |= settings
    (packed / "config.json").write_text(json.dumps(config))
    weights = []
    for directory in (made(kind)[2], convert(packed, tmp_path / "vt", progress=False)):
        decoder = load(directory, backend="torch", device="cpu").decoder
        weights.append(dict(decoder._model.named_modules())[LAYER].weight)
    assert weights[0].equal(weights[1])


def test_packed_tensors_are_freed_layer_by_layer(made, monkeypatch):
    pytest.importorskip("torch")
    from vt_torch.prequantized import PrequantizedLinear

    finished, done, left = PrequantizedLinear.finished, [], []

    def finish(layer):
        left.append(sum(seen() is not None for seen in done))
        done.append(weakref.ref(layer))
        return finished(layer)

    monkeypatch.setattr(PrequantizedLinear, "finished", finish)
    load(made("gptq")[2], backend="torch", device="cpu")
    assert left == [0] * (3 * 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}.qzeros"), f"{LAYER}.qzeros is missing"),
        (
            lambda tensors: tensors.update(
                {f"{LAYER}.qweight": tensors[f"{LAYER}.qweight"].astype(np.float32)}
            ),
            f"{LAYER}.qweight has the type F32 instead of integers",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.scales": tensors[f"{LAYER}.scales"].astype(np.int32)}),
            f"{LAYER}.scales has the type I32 instead of floats",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.bias": np.zeros(3, np.float16)}),
            rf"{LAYER}.bias has the shape \[3\], but config.json asks for \[64\]",
        ),
        (lambda tensors: tensors[f"{LAYER}.g_idx"].fill(9), "g_idx names groups from 9 to 9, of 2"),
        (
            lambda tensors: tensors.update({"model.norm.qweight": tensors[f"{LAYER}.qweight"]}),
            "model.norm is not a linear layer",
        ),
    ],
    ids=["missing", "float words", "integer scales", "bias", "no such group", "not linear"],
)
def test_tensors_that_do_not_fit_are_refused(change, said, made, tmp_path):
    pytest.importorskip("torch")
    packed = shutil.copytree(made("gptq")[0], tmp_path / "packed")
    tensors = {name: array.copy() for name, array in load_file(packed / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        load(convert(packed, tmp_path / "vt", progress=False), backend="torch", device="cpu")


def test_bias_that_only_the_file_has_is_used(made, tmp_path):
    """Some tools write a bias of zeros for every layer."""
    pytest.importorskip("torch")
    packed = shutil.copytree(made("gptq")[0], tmp_path / "packed")
    tensors = load_file(packed / "model.safetensors")
    bias = np.linspace(-1, 1, tensors[f"{LAYER}.scales"].shape[1]).astype(np.float16)
    save_file({**tensors, f"{LAYER}.bias": bias}, packed / "model.safetensors", {"format": "pt"})
    directory = convert(packed, tmp_path / "vt", progress=False)
    decoder = load(directory, backend="torch", device="cpu", dtype="float32").decoder
    layer = dict(decoder._model.named_modules())[LAYER]
    np.testing.assert_array_equal(layer.bias.numpy(), bias.astype(np.float32))


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_layers_of_a_multimodal_model(kind, tmp_path):
    """Published files have other names than transformers' modules."""
    pytest.importorskip("torch")
    text = ARCHITECTURES["gemma3-multimodal"][1]["text_config"]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    packed, floats = write_prequantized(tmp_path, kind, "gemma3-multimodal", text_config=text | sizes)
    assert any(name.startswith("language_model.model.") for name in load_file(packed / "model.safetensors"))
    expected = stock.GENERATE["torch"](stock.LOAD["torch"](floats, "float32"), PROMPT, 24, eos=[0, 2])[0]
    directory = convert(packed, tmp_path / "vt", progress=False)
    model = load(directory, backend="torch", device="cpu", dtype="float32")
    assert list(model.generate(PROMPT, max_tokens=24).token_ids) == expected
