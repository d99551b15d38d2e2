"""Models with a per-layer vocabulary table (Gemma 3n, Gemma 4). What they share with other models is tested
in ``test_architectures``.
"""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from converters import convert
from converters.export import export
from tests import stock
from tests.conftest import backend_params
from tests.prequantized import SETTINGS, write_prequantized
from tests.tiny import ARCHITECTURES, quantize, stock_source, write_model
from vt_core import load
from vt_core.errors import BackendError, ModelError
from vt_core.files.model_dir import ModelDirectory

TOKENS = 24
PROMPT = [5, 17, 300, 42, 42, 980, 7]
STATIC = range(0, 600, 2)
FEWER = 500  #: rows that Gemma 3n's layers have in these tests, of more than 2,000 tokens
WIDE = {"hidden_size": 64, "hidden_size_per_layer_input": 32}  # rows have groups
WIDE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 16,
}
EXPERTS = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}

every_backend = pytest.mark.parametrize("backend", backend_params())
every_kind = pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])


@every_backend
@every_kind
def test_each_token_reads_one_row_of_the_table(backend, kind, tiny):
    model = load(tiny(kind)[1], backend=backend, device="cpu", dtype="float32")
    table = model.decoder._rows.per_layer
    assert table.bytes_read == 0 and not model.decoder.can_follow
    model.decoder.head.set_static(STATIC)
    result = model.generate(PROMPT, max_tokens=6, approximate=True)
    rows = len(set(PROMPT)) + result.stats.generated_tokens - 1  # the last token of a text is not run
    assert len(set(result.token_ids)) > 2 and table.bytes_read == rows * 5 * 8 * 4
    parameters = model.decoder._model.parameters()
    if backend == "mlx":
        from mlx.utils import tree_flatten

        parameters = [value for _, value in tree_flatten(parameters)]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    assert len(shapes) > 50 and all(shape[0] < FEWER for shape in shapes if len(shape) == 2)


@every_backend
def test_tokens_after_the_last_row_use_row_0(backend, tiny):
    source, directory = tiny("gemma3n")
    original = stock.LOAD[backend](stock_source(source, backend), "float32")
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    model.decoder.head.set_static(STATIC)
    rng = np.random.default_rng(3)
    ranges = (FEWER, 2200), (FEWER - 2, FEWER + 2), (1, FEWER)
    prompts = [rng.integers(*ends, 12).tolist() for ends in ranges]
    prompts.append(rng.permutation(np.arange(3, 2200))[: FEWER + 4].tolist())  # more places than rows
    for prompt in prompts:
        expected = stock.GENERATE[backend](original, prompt, 8, eos=[0, 2])[0]
        assert list(model.generate(prompt, max_tokens=8).token_ids) == expected


@every_backend
@every_kind
def test_rewind_restores_wrapped_windows_and_shared_keys(backend, kind, tiny):
    rng = np.random.default_rng(5)
    prompt, text = rng.integers(3, 900, 40), rng.integers(3, 900, 20).tolist()

    def logits(wrong):
        decoder = load(tiny(kind)[1], backend=backend, device="cpu", dtype="float32").decoder
        decoder.head.set_static(range(1000))
        slot = decoder.open()
        decoder.prefill(slot, prompt)
        assert slot.can_rewind
        for token in text:
            for other in wrong:
                decoder.step(slot, other)
            decoder.rewind(slot, len(wrong))
            yield decoder.logits(decoder.step(slot, token))[0]
            decoder.settle(slot)
        decoder.close(slot)
        decoder.head.truncate()

    for plain, rewound in zip(logits([]), logits([950, 951, 952]), strict=True):
        np.testing.assert_allclose(rewound, plain, atol=1e-5)


@every_backend
@every_kind
def test_bfloat16_logits_equal_stock_logits(backend, kind, tiny):
    """The scale of the rows is rounded in the same way."""
    source, directory = tiny(kind, "bfloat16")
    original = stock.LOAD[backend](stock_source(source, backend), "bfloat16")
    decoder = load(directory, backend=backend, head="full", device="cpu", dtype="bfloat16").decoder
    slot = decoder.open()
    logits = decoder.logits(decoder.prefill(slot, np.array(PROMPT)))[0]
    decoder.close(slot)
    decoder.head.truncate()
    expected = stock.next_logits(backend, original, PROMPT)[: len(logits)]
    np.testing.assert_array_equal(logits, expected)


@every_backend
@pytest.mark.parametrize(("kind", "bits"), [("gemma4", 4), ("gemma3n", 8)])
def test_packed_rows_give_stock_ids(backend, kind, bits, tmp_path):
    source = write_model(tmp_path / "in", kind, **WIDE)
    if kind == "gemma4":
        quantize(source, bits, 32)
        directory = convert(source, tmp_path / "vt", progress=False)
        original = stock.LOAD[backend](stock_source(source, backend), "float32")
    else:
        pytest.importorskip("mlx_lm")  # the one that reads packed weights of this layout
        directory = convert(source, tmp_path / "vt", quantize=bits, group_size=32, progress=False)
        export(ModelDirectory.open(directory), tmp_path / "plain")
        original = stock.LOAD["mlx"](tmp_path / "plain", "float32")
    how = ModelDirectory.open(directory).manifest.quantization["per_layer"]
    assert (how.bits, how.group_size) == (bits, 32)
    expected = stock.GENERATE[backend](original, PROMPT, TOKENS, eos=[0, 2])[0]
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    model.decoder.head.set_static(STATIC)
    assert list(model.generate(PROMPT, max_tokens=TOKENS).token_ids) == expected


@every_kind
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantize_on_pytorch(kind, mode, tiny):
    pytest.importorskip("torch")
    options = {"backend": "torch", "device": "cpu", "quantize": mode}
    texts = []
    for head in ("full", "prealloc"):
        model = load(tiny(kind)[1], head=head, **options)
        model.decoder.head.set_static(STATIC)
        texts.append(model.generate(PROMPT, max_tokens=TOKENS).token_ids)
    assert model.decoder.dtype == "bfloat16" and texts[0] == texts[1]


@every_backend
def test_gemma_4_without_a_per_layer_table(backend, tmp_path):
    """The larger sizes have experts instead."""
    source = write_model(tmp_path / "in", "gemma4", **EXPERTS)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_global_key_value_heads": 1}))
    directory = convert(source, tmp_path / "vt", progress=False)
    original = stock.LOAD[backend](source, "float32")
    expected = stock.GENERATE[backend](original, PROMPT, TOKENS, eos=[0, 2])[0]
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    assert "per_layer" not in model.directory.manifest.tables
    model.decoder.head.set_static(STATIC)
    assert list(model.generate(PROMPT, max_tokens=TOKENS).token_ids) == expected


@every_backend
def test_table_in_memory(backend, tiny):
    models = [
        load(tiny("gemma4")[1], backend=backend, device="cpu", store=store) for store in ("lmdb", "ram")
    ]
    texts = [model.generate(PROMPT, max_tokens=6).token_ids for model in models]
    assert texts[0] == texts[1]


@every_backend
@pytest.mark.parametrize("kind", ["gemma3-multimodal", "gemma4-multimodal"])
def test_adapter_with_names_of_the_multimodal_model(backend, kind, tiny, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    source, directory = tiny(kind)
    original = stock.LOAD["torch"](source, "float32")
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    original._model = peft.get_peft_model(original._model, config).eval()
    torch.manual_seed(1)
    for name, parameter in original._model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    original._model.save_pretrained(tmp_path)
    expected = stock.GENERATE["torch"](original, PROMPT, TOKENS, eos=[0, 2])[0]
    options = {"backend": backend, "device": "cpu", "dtype": "float32"}
    texts = [
        list(load(directory, adapter=adapter, **options).generate(PROMPT, max_tokens=TOKENS).token_ids)
        for adapter in (str(tmp_path), None)
    ]
    assert texts[0] == expected != texts[1]


@every_backend
def test_per_layer_table_unknown_to_the_framework_is_refused(backend, tmp_path):
    from safetensors.torch import load_file, save_file

    source = write_model(tmp_path / "in", "llama")
    weights = load_file(source / "model.safetensors")
    rows = len(weights["model.embed_tokens.weight"])
    weights["model.embed_tokens_per_layer.weight"] = weights["model.norm.weight"].new_zeros(rows, 3 * 8)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": rows}
    (source / "config.json").write_text(json.dumps(config))
    directory = convert(source, tmp_path / "vt", progress=False)
    with pytest.raises(ModelError, match="has no vocabulary table for its layers"):
        load(directory, backend=backend, device="cpu")


def test_stock_may_need_another_package(tiny):
    """vt does not, because it loads the language model only."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is here")
    with pytest.raises(BackendError, match=r"leave the stock framework out: .*timm"):
        stock.LOAD["torch"](tiny("gemma3n")[0], "float32")


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
def test_prequantized_layers_inside_a_multimodal_model(layout, tmp_path, monkeypatch):
    if layout == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    left_alone = ["lm_head", "re:.*vision.*", "re:.*per_layer.*"]
    monkeypatch.setitem(SETTINGS, layout, SETTINGS[layout] | {"ignore": left_alone})
    text = ARCHITECTURES["gemma4-multimodal"][1]["text_config"]
    sizes = WIDE | {"intermediate_size": 128, "head_dim": 16}
    packed, floats = write_prequantized(
        tmp_path, layout, "gemma4-multimodal", text_config=text | sizes, vision_config=WIDE_VISION
    )
    original = stock.LOAD["torch"](floats, "float32")
    expected = stock.GENERATE["torch"](original, PROMPT, TOKENS, eos=[0, 2])[0]
    directory = convert(packed, tmp_path / "vt", progress=False)
    model = load(directory, backend="torch", device="cpu", dtype="float32")
    assert list(model.generate(PROMPT, max_tokens=TOKENS).token_ids) == expected
