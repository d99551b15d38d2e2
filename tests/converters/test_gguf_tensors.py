from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import gguf_tensors
from converters.gguf_file import TENSOR_TYPES, GGUFFile
from converters.gguf_metadata import Hyperparameters
from converters.gguf_plans import Plan, separate_halves
from converters.gguf_tensors import layout_of, plan_tensors, read_chunks
from tests.converters import gguf_writer as gguf
from tests.converters.gguf_tiny import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    MODULES,
    ROWS,
    metadata,
    open_model,
    weights,
)
from tests.converters.gguf_writer import Tensor, write_gguf
from vt_core.errors import ModelError
from vt_core.files.dtypes import to_float32


def plans_of(file: GGUFFile) -> dict[str, Plan]:
    return plan_tensors(file, layout_of(file), Hyperparameters(file))


def values_of(file: GGUFFile, name: str, dtype: str = "float32") -> np.ndarray:
    return to_float32(np.concatenate(list(read_chunks(file, plans_of(file)[name], dtype))), dtype)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """What a converter to GGUF does to query and key rows, said row by row."""
    width = len(rows) // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = rows[head * width + i]
            out[head * width + 2 * i + 1] = rows[head * width + width // 2 + i]
    return out


@pytest.mark.parametrize(
    ("architecture", "module", "name"),
    [
        ("llama", "attn_output", "self_attn.o_proj"),
        ("llama", "ffn_gate", "mlp.gate_proj"),
        ("llama", "ffn_up", "mlp.up_proj"),
        ("llama", "ffn_down", "mlp.down_proj"),
        ("llama", "attn_norm", "input_layernorm"),
        ("llama", "ffn_norm", "post_attention_layernorm"),
        ("smollm3", "attn_v", "self_attn.v_proj"),
        ("qwen2", "attn_k", "self_attn.k_proj"),
        ("qwen3", "attn_q_norm", "self_attn.q_norm"),
        ("qwen3", "attn_k_norm", "self_attn.k_norm"),
        ("gemma", "ffn_down", "mlp.down_proj"),
        ("gemma2", "attn_v", "self_attn.v_proj"),
        ("gemma3", "attn_q", "self_attn.q_proj"),
        ("phi3", "attn_qkv", "self_attn.qkv_proj"),
        ("phi3", "ffn_up", "mlp.gate_up_proj"),
    ],
)
def test_tensors_take_hugging_face_names(tmp_path, architecture, module, name):
    values = weights(architecture)
    file = open_model(tmp_path, architecture, values)
    for layer in range(LAYERS):
        expected = values[f"blk.{layer}.{module}.weight"]
        np.testing.assert_array_equal(values_of(file, f"model.layers.{layer}.{name}.weight"), expected)


@pytest.mark.parametrize("architecture", sorted(MODULES))
def test_every_tensor_is_given_out_once(tmp_path, architecture):
    values = weights(architecture)
    plans = plans_of(open_model(tmp_path, architecture, values))
    assert sorted(plan.tensor.name for plan in plans.values()) == sorted(values)
    assert [plan.tensor.name for plan in plans.values()] == list(values), "not in the order of the file"
    assert plans["model.embed_tokens.weight"].tensor.name == "token_embd.weight"
    assert plans["model.norm.weight"].tensor.name == "output_norm.weight"


def test_the_head_is_there_when_the_file_has_one(tmp_path):
    values = weights("qwen2", untied=True)
    file = open_model(tmp_path, "qwen2", values)
    np.testing.assert_array_equal(values_of(file, "lm_head.weight"), values["output.weight"])
    assert "lm_head.weight" not in plans_of(open_model(tmp_path, "qwen2"))


def test_biases_of_qwen2(tmp_path):
    values = weights("qwen2")
    file = open_model(tmp_path, "qwen2", values)
    expected = values["blk.1.attn_q.bias"]
    np.testing.assert_array_equal(values_of(file, "model.layers.1.self_attn.q_proj.bias"), expected)


@pytest.mark.parametrize("architecture", ["llama", "smollm3"])
@pytest.mark.parametrize("rows_of_a_chunk", [1, HEAD_DIM, 3 * HEAD_DIM, 1000])
def test_llama_query_and_key_rows_are_put_back(tmp_path, monkeypatch, architecture, rows_of_a_chunk):
    monkeypatch.setattr(gguf_tensors, "CHUNK_BYTES", rows_of_a_chunk * HIDDEN * 4)
    values = weights(architecture)
    biases = {
        f"blk.{i}.{module}.bias": len(values[f"blk.{i}.{module}.weight"])
        for i in range(LAYERS)
        for module in MODULES["llama"][:4]
    }
    values |= {name: np.arange(size, dtype=np.float32) for name, size in biases.items()}
    stored = dict(values)
    for name in values:
        if ".attn_q." in name or ".attn_k." in name:
            stored[name] = interleave(values[name], HEADS if ".attn_q." in name else KV_HEADS)
    file = open_model(tmp_path, architecture, stored)
    for module in ("q", "k", "v"):
        for kind in ("weight", "bias"):
            np.testing.assert_array_equal(
                values_of(file, f"model.layers.1.self_attn.{module}_proj.{kind}"),
                values[f"blk.1.attn_{module}.{kind}"],
            )
    chunks = list(read_chunks(file, plans_of(file)["model.layers.0.self_attn.q_proj.weight"], "float32"))
    assert all(len(chunk) % HEAD_DIM == 0 for chunk in chunks)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3"])
def test_other_models_keep_the_order_of_their_rows(tmp_path, architecture):
    values = weights(architecture)
    file = open_model(tmp_path, architecture, values)
    expected = values["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(values_of(file, "model.layers.0.self_attn.q_proj.weight"), expected)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_separating_halves_undoes_interleaving(heads, half, columns):
    rows = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    np.testing.assert_array_equal(separate_halves(interleave(rows, heads), 2 * half), rows)


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_gemma_norms_lose_the_one_that_gguf_adds(tmp_path, architecture):
    values = weights(architecture)
    stored = {name: value + np.float32(1) if "norm" in name else value for name, value in values.items()}
    file = open_model(tmp_path, architecture, stored)
    norms = [name for name in plans_of(file) if "norm" in name]
    assert len(norms) == 1 + LAYERS * sum("norm" in module for module in MODULES[architecture])
    for name, plan in plans_of(file).items():
        expected = stored[plan.tensor.name] - np.float32(1) if name in norms else values[plan.tensor.name]
        np.testing.assert_array_equal(values_of(file, name), expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
def test_other_norms_stay_as_they_are(tmp_path, architecture):
    values = weights(architecture)
    file = open_model(tmp_path, architecture, values)
    np.testing.assert_array_equal(values_of(file, "model.norm.weight"), values["output_norm.weight"])


WRITABLE = [gguf.F32, gguf.F16, gguf.BF16, gguf.Q4_0, gguf.Q4_1, gguf.Q5_0, gguf.Q5_1, gguf.Q8_0]
#: Types that the gguf package cannot write, with the places of the float16 scales in a block.
UNWRITABLE = {gguf.Q4_K: (0, 2), gguf.Q5_K: (0, 2), gguf.Q6_K: (208,), gguf.IQ4_XS: (0,)}


def blocks(kind: int, rows: int, columns: int) -> np.ndarray:
    """[rows, bytes] of blocks of any bits but small scales."""
    _, elements, size = TENSOR_TYPES[kind]
    data = np.random.default_rng(kind).integers(0, 256, (rows * columns // elements, size), np.uint8)
    for at in UNWRITABLE[kind]:
        data[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", [*WRITABLE, *UNWRITABLE])
@pytest.mark.parametrize("rows_of_a_chunk", [1, 5, 1000])
def test_chunks_dequantize_to_what_the_whole_does(tmp_path, monkeypatch, kind, rows_of_a_chunk):
    from gguf.quants import GGMLQuantizationType, dequantize, quantize

    rows, columns = 17, 512
    monkeypatch.setattr(gguf_tensors, "CHUNK_BYTES", rows_of_a_chunk * columns * 4)
    quantization = GGMLQuantizationType(kind)
    if kind in UNWRITABLE:
        packed = blocks(kind, rows, columns)
    else:
        packed = quantize(
            np.random.default_rng(3).standard_normal((rows, columns)).astype("f4"), quantization
        )
    whole = dequantize(packed, quantization)
    values = weights("llama")
    tensors = {name: Tensor.of(value) for name, value in values.items()}
    tensors["blk.0.ffn_down.weight"] = Tensor((rows, columns), kind, packed.tobytes())
    file = GGUFFile(write_gguf(tmp_path / "model.gguf", metadata("llama"), tensors))
    plan = plans_of(file)["model.layers.0.mlp.down_proj.weight"]
    chunks = list(read_chunks(file, plan, "float32"))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows_of_a_chunk] * (len(chunks) - 1)
    assert all(chunk.flags.c_contiguous for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    half = np.concatenate(list(read_chunks(file, plan, "float16")))
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_bfloat16_is_rounded_to_nearest_even_bits(tmp_path):
    values = weights("llama")
    values["output_norm.weight"] = np.full(HIDDEN, 1, np.float32)
    # Between 0x3F80 and 0x3F81, and between 0x3F81 and 0x3F82: a tie goes to the even one.
    values["output_norm.weight"][:4] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], "<u4").view(
        "<f4"
    )
    file = open_model(tmp_path, "llama", values)
    (chunk,) = read_chunks(file, plans_of(file)["model.norm.weight"], "bfloat16")
    assert chunk.dtype == np.uint16
    assert chunk[:5].tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80, 0x3F80]


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path):
    values = weights("llama")
    values["token_embd.weight"][3, 3] = 70000
    file = open_model(tmp_path, "llama", values)
    with pytest.raises(ModelError, match=r"token_embd.weight has values too large for float16"):
        list(read_chunks(file, plans_of(file)["model.embed_tokens.weight"], "float16"))
    assert values_of(file, "model.embed_tokens.weight")[3, 3] == 70000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(tmp_path, value):
    values = weights("llama")
    values["blk.0.ffn_up.weight"][1, 1] = value
    file = open_model(tmp_path, "llama", values)
    with pytest.raises(ModelError, match=r"blk.0.ffn_up.weight holds values that are not finite numbers"):
        values_of(file, "model.layers.0.mlp.up_proj.weight")


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    file = GGUFFile(write_gguf(tmp_path / "model.gguf", {"general.architecture": "mamba"}))
    with pytest.raises(ModelError, match=r"'mamba'.*gemma3"):
        layout_of(file)
    with pytest.raises(ModelError, match="None"):
        layout_of(GGUFFile(write_gguf(tmp_path / "model.gguf", {})))


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "output_norm.weight", "blk.1.ffn_up.weight", "blk.1.attn_v.bias"]
)
def test_a_missing_tensor_is_refused(tmp_path, name):
    values = weights("qwen2")
    del values[name]
    with pytest.raises(ModelError, match=re.escape(f"lacks the tensor {name}")):
        plans_of(open_model(tmp_path, "qwen2", values))


def test_biases_are_there_for_a_whole_group_or_not_at_all(tmp_path):
    values = weights("llama")
    values["blk.0.attn_q.bias"] = np.zeros(HEADS * HEAD_DIM, np.float32)
    with pytest.raises(ModelError, match=r"lacks the tensor blk.0.attn_k.bias"):
        plans_of(open_model(tmp_path, "llama", values))


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_inp.weight", "blk.2.ffn_up.weight", "output.bias", "blk.0.ffn_norm.bias"]
)
def test_a_tensor_that_is_not_understood_is_refused(tmp_path, name):
    values = {**weights("llama"), name: np.zeros(HIDDEN, np.float32)}
    with pytest.raises(ModelError, match=re.escape(f"holds the tensor {name}")):
        plans_of(open_model(tmp_path, "llama", values))


def test_tensors_that_the_frameworks_compute_are_left_out(tmp_path):
    extra = dict.fromkeys(
        ["rope_freqs.weight", "blk.0.attn_rot_embd.weight"], np.ones(HEAD_DIM // 2, np.float32)
    )
    plans = plans_of(open_model(tmp_path, "llama", {**weights("llama"), **extra}))
    assert len(plans) == len(weights("llama"))


def test_an_absurd_number_of_layers_is_refused_at_once(tmp_path):
    with pytest.raises(ModelError, match="claims 2000000000 layers"):
        plans_of(open_model(tmp_path, "llama", block_count=2_000_000_000))


def test_shapes_that_cannot_be_are_refused(tmp_path):
    values = weights("llama")
    values["blk.0.attn_q.weight"] = np.zeros((HEAD_DIM + 1, HIDDEN), np.float32)
    with pytest.raises(ModelError, match="not whole heads of 8"):
        plans_of(open_model(tmp_path, "llama", values))
    values = weights("llama")
    values["token_embd.weight"] = np.zeros((1, ROWS, HIDDEN), np.float32)
    with pytest.raises(ModelError, match="3 dimensions"):
        plans_of(open_model(tmp_path, "llama", values))
