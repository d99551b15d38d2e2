"""What is particular to weights in MLX's affine format; what they share with others the other tables test."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from converters import convert
from tests import stock
from tests.conftest import backend_params
from tests.manifests import update_manifest
from tests.tiny import QUANTIZED, quantize, write_model
from vt_core import load
from vt_core.errors import BackendError, ModelError
from vt_core.files.model_dir import ModelDirectory

PROMPT = [5, 17, 300, 42, 42, 980, 7]
STATIC = range(3, 400, 7)

every_kind = pytest.mark.parametrize("kind", QUANTIZED)


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_logits_are_the_full_heads_to_the_bit(kind, dtype, tiny):
    pytest.importorskip("mlx_lm")
    found = {}
    for head in ("full", "prealloc", "split", "rebuild"):
        decoder = load(tiny(kind, dtype)[1], backend="mlx", head=head, device="cpu", dtype=dtype).decoder
        decoder.head.set_static(STATIC)
        slot = decoder.open()
        decoder.head.add(PROMPT)
        found[head] = (
            decoder.logits(decoder.prefill(slot, np.array(PROMPT)))[0],
            decoder.head.vocabulary.ids.copy(),
        )
        decoder.close(slot)
        decoder.head.truncate()
    full, _ = found.pop("full")
    for logits, ids in found.values():
        np.testing.assert_array_equal(logits, full[ids])


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiles_hold_the_full_heads_logits(kind, dtype, tiny):
    mx = pytest.importorskip("mlx.core")
    options = {"backend": "mlx", "device": "cpu", "dtype": dtype}
    full = load(tiny(kind, dtype)[1], head="full", **options).decoder
    decoder = load(tiny(kind, dtype)[1], tile_bytes=30_000, **options).decoder
    full.head.set_static([])
    rng = np.random.default_rng(0)
    hidden = mx.array(rng.standard_normal((3, 64)).astype(np.float32)).astype(getattr(mx, dtype))
    expected = np.array(full.head.logits(hidden).astype(mx.float32))
    tiles = list(decoder._full_head(hidden).tiles(hidden))
    found = np.concatenate([[tile.take(row, np.arange(tile.count)) for row in range(3)] for tile in tiles], 1)
    assert len(tiles) > 3
    found = found[:, full.head.vocabulary.ids]
    # In half precision MLX's CPU build adds up in that precision, which only itself repeats.
    np.testing.assert_allclose(found, expected, **({"rtol": 0} if dtype == "bfloat16" else {"atol": 2e-5}))


@every_kind
def test_a_gpu_gets_packed_rows_in_numbers_that_its_kernel_likes(kind, tiny, monkeypatch):
    mx = pytest.importorskip("mlx.core")
    rows = load(tiny(kind)[1], backend="mlx", device="cpu").decoder._rows
    hidden = mx.random.normal((2, 64))
    wanted = rows.read(np.arange(20))
    expected = rows.product(hidden, wanted)
    multiply, counts = rows._multiply, []

    def counted(states, weight, scales, biases):
        counts.append(len(weight))
        return multiply(states, weight, scales, biases)

    monkeypatch.setattr(rows, "_multiply", counted)
    monkeypatch.setattr(rows, "_multiple", 8)
    for count in range(21):
        counts.clear()
        logits = rows.product(hidden, rows.first(wanted, count))
        assert logits.shape == (2, count) and all(n > 0 and n % 8 == 0 for n in counts)
        assert mx.array_equal(logits, expected[:, :count]).item()


@every_kind
@pytest.mark.parametrize("backend", backend_params())
def test_memory_and_reading_are_counted_in_packed_bytes_where_rows_stay_packed(backend, kind, tiny):
    model = load(tiny(kind)[1], backend=backend, head="rebuild", device="cpu")
    model.decoder.head.set_static(STATIC)
    manifest = model.directory.manifest
    head = manifest.tables["embedding" if manifest.tied else "head"]
    row = head.columns * 4 if backend == "mlx" else manifest.hidden * 4
    assert model.decoder.head.nbytes == len(STATIC) * row
    assert model.generate(PROMPT, max_tokens=4).stats.vocab_bytes_full == manifest.table_bytes


#: Models whose weights mlx-lm renames, turns, stacks or takes out of a larger model before it packs them.
REWRITTEN = {
    "gpt2": {"hidden_size": 64},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 256},
    "mamba": {"hidden_size": 64, "intermediate_size": 128},
    "qwen3_moe": {"hidden_size": 64, "intermediate_size": 128},
    "gemma3-multimodal": {},
}


@pytest.mark.parametrize("kind", REWRITTEN)
def test_what_mlx_lm_wrote_gives_mlx_lms_ids(kind, tmp_path):
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    source = write_model(tmp_path / "in", kind, **REWRITTEN[kind])
    with mx.stream(mx.cpu):
        model, config = quantize_model(*load_model(source, lazy=True), 32, 4)
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(source / "model.safetensors"), weights, {"format": "mlx"})
    config.pop("eos_token_id", None)
    (source / "config.json").write_text(json.dumps(config))
    expected = stock.GENERATE["mlx"](stock.LOAD["mlx"](source, "float32"), PROMPT, 16, eos=[0, 2])[0]
    assert len(set(expected)) >= 8
    directory = convert(source, tmp_path / "out", progress=False)
    model = load(directory, backend="mlx", device="cpu", dtype="float32")
    model.decoder.head.set_static(STATIC)
    result = model.generate(PROMPT, max_tokens=16)
    assert list(result.token_ids) == expected and result.stats.rescued > 0
    assert result.stats.quantization in ("4-bit affine", "8-bit affine")
    with pytest.raises(ModelError, match="in a layout that only MLX reads; run it with vt-mlx"):
        load(directory, backend="torch", device="cpu")


@pytest.mark.parametrize("store", ["lmdb", "ram"])
@pytest.mark.parametrize("backend", backend_params())
def test_tables_may_lie_in_memory(backend, store, tiny):
    directory = tiny("qwen2-8bit")[1]
    expected = load(directory, backend=backend, head="full", device="cpu").generate(PROMPT, max_tokens=16)
    model = load(directory, backend=backend, store=store, device="cpu")
    model.decoder.head.set_static(STATIC)
    assert model.generate(PROMPT, max_tokens=16).token_ids == expected.token_ids


@every_kind
def test_transformers_is_not_given_what_it_would_misread(kind, tiny):
    transformers = pytest.importorskip("vt_torch.stock")
    with pytest.raises(BackendError, match="transformers cannot read weights in MLX's affine format"):
        transformers.load_stock(tiny(kind)[0], device="cpu", dtype="float32", stored="float32")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "mxfp4"}, "in the mode 'mxfp4', which only MLX reads; run the model with vt-mlx"),
        ({"bits": 6}, r"is not packed as config.json says \(6 bits in groups of 32\)"),
        ({"group_size": None}, r"is not packed as config.json says \(4 bits in groups of None\)"),
    ],
)
def test_pytorch_refuses_what_it_cannot_dequantize(settings, sentence, tiny, tmp_path):
    pytest.importorskip("torch")
    changed = shutil.copytree(tiny("llama-4bit")[1], tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    config["quantization"] |= settings
    (changed / "config.json").write_text(json.dumps(config))
    update_manifest(changed)
    with pytest.raises(ModelError, match=sentence):
        load(changed, backend="torch", device="cpu")


def test_a_table_that_mlx_lm_would_scale_is_refused_where_it_is_packed(tmp_path):
    pytest.importorskip("mlx_lm")
    source = write_model(tmp_path / "in", "falcon_h1", hidden_size=64, intermediate_size=128)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"head_dim": 16}))
    quantize(source, 8, 32)
    directory = convert(source, tmp_path / "out", progress=False)
    assert ModelDirectory.open(directory).manifest.quantization
    for backend, sentence in (
        ("mlx", "mlx-lm multiplies the"),
        ("torch", "a falcon_h1 model in a layout that"),
    ):
        if backend == "torch":
            pytest.importorskip("torch")
        with pytest.raises(ModelError, match=sentence):
            load(directory, backend=backend, device="cpu")
