"""LoRA adapters saved by PEFT and by mlx-lm give the ids of the framework that saved them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests import stock
from tests.conftest import backend_params
from tests.tiny import KINDS, stock_source
from vt_core import load
from vt_core.cli import build
from vt_core.errors import ModelError

PROMPT = [5, 17, 300, 42]
TOKENS = 16
TARGETS = ["q_proj", "down_proj"]
#: Settings of PEFT that change the scale.
PEFT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "mlp.down_proj": 3},
        "alpha_pattern": {r"layers\.[02]\.mlp\.down_proj": 20},
    },
}
backends = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """``saved(kind, settings)``: directory of an adapter that PEFT saved, and the ids with it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    def save(kind, settings):
        directory = tmp_path_factory.mktemp("peft")
        base = stock.LOAD["torch"](stock_source(tiny(kind)[0], "torch"), "float32")
        config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, **PEFT[settings])
        model = base._model = peft.get_peft_model(base._model, config).eval()
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        model.save_pretrained(directory)
        return directory, tuple(stock.GENERATE["torch"](base, PROMPT, TOKENS, [0, 2])[0])

    return save


@backends
@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, "plain") for kind in KINDS), ("llama", "rslora"), ("llama", "patterns")]
)
def test_ids_are_those_of_peft(backend, kind, settings, saved, tiny):
    adapter, expected = saved(kind, settings)
    for head in ("full", "prealloc"):
        options = {"backend": backend, "head": head, "device": "cpu", "dtype": "float32"}
        model = load(tiny(kind)[1], adapter=adapter, **options)
        model.decoder.head.set_static(range(0, 300, 2))
        assert model.generate(PROMPT, max_tokens=TOKENS).token_ids == expected
    plain = load(tiny(kind)[1], backend=backend, device="cpu", dtype="float32")
    assert plain.generate(PROMPT, max_tokens=TOKENS).token_ids != expected


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_adapters_on_quantized_layers_do_not_dequantize_them(mode, saved, tiny, monkeypatch):
    from vt_torch import quantized as quantized

    adapter, _ = saved("gemma3", "plain")
    options = {"backend": "torch", "device": "cpu", "quantize": mode}
    plain = load(tiny("gemma3")[1], **options).generate(PROMPT, max_tokens=TOKENS).token_ids
    for layer in (quantized.Int8Linear, quantized.Int4Linear):
        monkeypatch.delattr(layer, "weight")
    model = load(tiny("gemma3")[1], adapter=adapter, **options)
    assert model.generate(PROMPT, max_tokens=TOKENS).token_ids != plain


@backends
def test_ids_are_those_of_mlx_lm(backend, tiny, tmp_path):
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.tuner.utils")
    from mlx.utils import tree_flatten

    parameters = {"rank": 3, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.v_proj", "mlp.up_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    original = stock.LOAD["mlx"](tiny("llama")[0], "float32")._model
    utils.linear_to_lora_layers(original, 2, parameters)
    leaves = dict(tree_flatten(original.parameters()))
    mx.random.seed(2)
    tensors = {name: 0.3 * mx.random.normal(leaf.shape) for name, leaf in leaves.items() if ".lora_" in name}
    assert len(tensors) == 2 * 2 * 2
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), tensors)
    original = stock.LOAD["mlx"](tiny("llama")[0], "float32")
    utils.load_adapters(original._model, str(tmp_path)).eval()
    expected = tuple(stock.GENERATE["mlx"](original, PROMPT, TOKENS, [0, 2])[0])
    model = load(tiny("llama")[1], backend=backend, adapter=tmp_path, device="cpu", dtype="float32")
    assert model.generate(PROMPT, max_tokens=TOKENS).token_ids == expected
    plain = load(tiny("llama")[1], backend=backend, device="cpu", dtype="float32")
    assert plain.generate(PROMPT, max_tokens=TOKENS).token_ids != expected


@backends
def test_adapter_of_another_model_is_refused(backend, saved, tiny, tmp_path):
    adapter, _ = saved("llama", "plain")
    with pytest.raises(
        ModelError, match="for a layer of 48 inputs and 48 outputs, and this model's has 48 and 64"
    ):
        load(tiny("gemma3")[1], backend=backend, adapter=adapter, device="cpu")
    from safetensors.numpy import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.2", "layers.9"): t for name, t in load_file(file).items()}, file)
    command = [
        "generate",
        "--model",
        str(tiny("llama")[1]),
        "--device",
        "cpu",
        "--adapter",
        str(adapter),
        "a",
    ]
    done = CliRunner().invoke(build(backend), command)
    assert done.exit_code == 2 and done.stdout == ""
    assert "model.layers.9." in done.stderr and "has no such linear layer" in done.stderr
