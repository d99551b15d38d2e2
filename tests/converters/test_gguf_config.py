from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from converters.gguf_config import build_config, build_generation_config, token_ids
from converters.gguf_metadata import Hyperparameters
from tests.converters.gguf_tiny import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    ROWS,
    open_model,
    weights,
)
from vt_core.errors import ModelError


def config_of(
    tmp_path, architecture: str, *, extra: dict[str, np.ndarray] | None = None, **changes: Any
) -> dict[str, Any]:
    values = {**weights(architecture), **(extra or {})}
    return build_config(open_model(tmp_path, architecture, values, **changes), ROWS, True, "bfloat16")


def test_fields_of_every_config(tmp_path):
    ids = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 3,
    }
    config = build_config(open_model(tmp_path, "llama", keys=ids), ROWS, False, "float16")
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
    }
    assert {key: config.get(key, "absent") for key in expected} == expected


@pytest.mark.parametrize(
    ("architecture", "model_type", "model_class"),
    [
        ("llama", "llama", "LlamaForCausalLM"),
        ("smollm3", "smollm3", "SmolLM3ForCausalLM"),
        ("qwen2", "qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "qwen3", "Qwen3ForCausalLM"),
        ("gemma", "gemma", "GemmaForCausalLM"),
        ("gemma2", "gemma2", "Gemma2ForCausalLM"),
        ("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
        ("phi3", "phi3", "Phi3ForCausalLM"),
    ],
)
def test_names_of_the_models(tmp_path, architecture, model_type, model_class):
    config = config_of(tmp_path, architecture)
    assert (config["model_type"], config["architectures"]) == (model_type, [model_class])
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True


def test_defaults_where_the_file_is_silent(tmp_path):
    changes = {"attention.head_count_kv": None, "rope.freq_base": None}
    config = config_of(tmp_path, "llama", **changes)
    assert config["num_key_value_heads"] == HEADS
    assert config["rope_theta"] == 10_000
    assert config["eos_token_id"] is None
    assert config_of(tmp_path, "gemma3", **changes)["rope_theta"] == 1_000_000


def test_head_width_is_the_key_length(tmp_path):
    changes = {"attention.key_length": 16, "attention.value_length": 16}
    assert config_of(tmp_path, "qwen3", **changes)["head_dim"] == 16


def test_attention_biases_of_llama_and_qwen3_are_seen(tmp_path):
    extra = {"blk.0.attn_q.bias": np.zeros(HEADS * HEAD_DIM, np.float32)}
    assert config_of(tmp_path, "llama", extra=extra)["attention_bias"] is True
    assert config_of(tmp_path, "qwen3", extra=extra)["attention_bias"] is True
    assert config_of(tmp_path, "qwen3")["attention_bias"] is False
    extra = {"blk.0.ffn_up.bias": np.zeros(INTERMEDIATE, np.float32)}
    assert config_of(tmp_path, "llama", extra=extra)["mlp_bias"] is True


def test_smollm3_leaves_rope_out_of_every_fourth_layer(tmp_path):
    values = weights("smollm3", layers=9)
    config = build_config(open_model(tmp_path, "smollm3", values, block_count=9), ROWS, True, "bfloat16")
    assert config["no_rope_layers"] == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert config["no_rope_layer_interval"] == 4
    assert config["layer_types"] == ["full_attention"] * 9


def test_qwen2_has_no_sliding_window(tmp_path):
    config = config_of(tmp_path, "qwen2")
    assert (config["use_sliding_window"], config["sliding_window"]) == (False, None)
    assert config["max_window_layers"] == LAYERS


def test_gemma3(tmp_path):
    changes = {
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.sliding_window": 512,
        "rope.freq_base": 1e6,
        "block_count": 13,
    }
    config = config_of(tmp_path, "gemma3", **changes)
    assert config["layer_types"] == [*["sliding_attention"] * 5, "full_attention"] * 2 + ["sliding_attention"]
    assert config["sliding_window"] == 512
    assert config["sliding_window_pattern"] == 6
    assert config["query_pre_attn_scalar"] == config["head_dim"] == 16
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config["hidden_activation"] == "gelu_pytorch_tanh"
    assert config["final_logit_softcapping"] is None
    assert config["attn_logit_softcapping"] is None


def test_gemma3_says_what_newer_files_say(tmp_path):
    changes = {
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": 2,
        "rope.freq_base_swa": 5000.0,
        "final_logit_softcapping": 20.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    config = config_of(tmp_path, "gemma3", **changes)
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert (config["rope_local_base_freq"], config["final_logit_softcapping"]) == (5000, 20)
    assert config["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 8}
    full, sliding = (
        config["rope_parameters"]["full_attention"],
        config["rope_parameters"]["sliding_attention"],
    )
    assert (full["rope_type"], full["factor"], full["rope_theta"]) == ("linear", 8, 10000)
    assert sliding == {"rope_type": "default", "rope_theta": 5000}


def test_gemma3_without_a_window_attends_to_everything(tmp_path):
    config = config_of(tmp_path, "gemma3")
    assert config["layer_types"] == ["full_attention"] * LAYERS
    assert config["sliding_window_pattern"] == 1


def test_gemma2(tmp_path):
    changes = {
        "attention.sliding_window": 64,
        "attn_logit_softcapping": 40.0,
        "final_logit_softcapping": 25.0,
    }
    config = config_of(tmp_path, "gemma2", **changes)
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (40, 25)
    assert config["sliding_window"] == 64


@pytest.mark.parametrize(("architecture", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_queries_by_another_width(tmp_path, architecture, layers):
    widths = {"attention.key_length": 16, "attention.value_length": 16}
    assert config_of(tmp_path, architecture, **widths)["query_pre_attn_scalar"] == 16
    assert (
        config_of(tmp_path, architecture, **widths, block_count=layers)["query_pre_attn_scalar"]
        == HIDDEN // HEADS
    )
    assert (
        config_of(tmp_path, architecture, **widths, **{"attention.scale": 0.125})["query_pre_attn_scalar"]
        == 64
    )


def test_yarn_and_linear_scaling(tmp_path):
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    scaling = {"type": "yarn", "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}
    config = config_of(tmp_path, "qwen2", **yarn)
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"] == {"rope_theta": 10000, **scaling}
    tuned = config_of(tmp_path, "qwen2", **yarn, **{"rope.scaling.yarn_beta_fast": 16.0})
    assert tuned["rope_scaling"]["beta_fast"] == 16
    old = config_of(tmp_path, "llama", **{"rope.scale_linear": 2.0})
    assert old["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 2}
    none = {"rope.scaling.type": "none", "rope.scaling.factor": 2.0}
    assert config_of(tmp_path, "llama", **none)["rope_scaling"] is None


def llama3_divisors(factor: float, theta: float, width: int) -> np.ndarray:
    """Frequency by frequency, as Llama 3 defines it."""
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * math.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path, factor):
    widths = {"attention.key_length": 64, "attention.value_length": 64, "rope.freq_base": 500_000.0}
    divisors = llama3_divisors(factor, 500_000.0, 64)
    assert len(np.unique(divisors)) > 3, "the example has no frequencies between the extremes"
    config = config_of(tmp_path, "llama", extra={"rope_freqs.weight": divisors}, **widths)
    assert config["rope_scaling"] == {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ones = {"rope_freqs.weight": np.ones(32, np.float32)}
    assert config_of(tmp_path, "llama", extra=ones, **widths)["rope_scaling"] is None
    with pytest.raises(ModelError, match="other than Llama 3's"):
        config_of(tmp_path, "llama", extra={"rope_freqs.weight": divisors**2}, **widths)
    with pytest.raises(ModelError, match="not a row of 32"):
        config_of(tmp_path, "llama", extra={"rope_freqs.weight": divisors[:-1]}, **widths)


def test_phi3(tmp_path):
    plain = config_of(tmp_path, "phi3", **{"attention.sliding_window": 47})
    assert (plain["sliding_window"], plain["rope_scaling"], plain["partial_rotary_factor"]) == (47, None, 1)
    assert plain["original_max_position_embeddings"] == 128

    factors = np.array([1.0, 1.5, 2.0], np.float32)
    extra = {"rope_factors_long.weight": factors * 2, "rope_factors_short.weight": factors}
    changes = {"rope.dimension_count": 6, "rope.scaling.original_context_length": 32}
    long = config_of(tmp_path, "phi3", extra=extra, **changes)
    assert long["partial_rotary_factor"] == 0.75
    assert long["original_max_position_embeddings"] == 32
    assert long["rope_scaling"] == {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": [2, 3, 4],
        "short_factor": [1, 1.5, 2],
        "original_max_position_embeddings": 32,
    }
    del extra["rope_factors_short.weight"]
    with pytest.raises(ModelError, match="one of rope_factors_long"):
        config_of(tmp_path, "phi3", extra=extra, **changes)


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("llama", {"block_count": None}, "lack llama.block_count"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, "lack llama.attention.layer_norm_rms_epsilon"),
        ("llama", {"attention.layer_norm_rms_epsilon": math.nan}, "nan, not a finite number"),
        ("llama", {"embedding_length": "wide"}, "'wide', not a positive count"),
        ("llama", {"embedding_length": True}, "True, not a positive count"),
        ("llama", {"attention.head_count": 0}, "0, not a positive count"),
        ("llama", {"attention.head_count": 5}, "not a multiple of the 5 attention heads"),
        ("llama", {"attention.head_count_kv": np.array([2, 1])}, "differs from layer to layer"),
        ("llama", {"attention.key_length": 8, "attention.value_length": 4}, "different or odd widths"),
        ("llama", {"attention.key_length": 7, "attention.value_length": 7}, "different or odd widths"),
        ("llama", {"expert_count": 8}, "experts"),
        ("llama", {"rope.dimension_count": 4}, "RoPE over 4 of 8"),
        ("qwen3", {"rope.scaling.type": "ntk", "rope.scaling.factor": 2.0}, "'ntk'"),
    ],
)
def test_metadata_of_no_known_model_are_refused(tmp_path, architecture, changes, words):
    with pytest.raises(ModelError, match=words) as caught:
        config_of(tmp_path, architecture, **changes)
    assert "model.gguf" in str(caught.value)


def test_one_value_for_all_layers_may_be_written_for_each(tmp_path):
    changes = {"attention.head_count_kv": np.array([2, 2]), "feed_forward_length": np.array([64, 64])}
    assert config_of(tmp_path, "llama", **changes)["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("ends", "expected"),
    [({}, None), ({"eos": 2}, 2), ({"eos": 2, "eot": 2}, 2), ({"eos": 2, "eot": 5, "eom": 4}, [2, 5, 4])],
)
def test_generation_config_has_every_end(tmp_path, ends, expected):
    keys = {f"tokenizer.ggml.{role}_token_id": id for role, id in ends.items()}
    config = build_generation_config(
        open_model(tmp_path, "llama", keys={**keys, "tokenizer.ggml.bos_token_id": 1})
    )
    assert config == (
        {"bos_token_id": 1} if expected is None else {"bos_token_id": 1, "eos_token_id": expected}
    )


@pytest.mark.parametrize("id", [ROWS, 2**32 - 1])
def test_token_ids_outside_the_table_are_ignored(tmp_path, id):
    keys = {f"tokenizer.ggml.{role}_token_id": id for role in ("bos", "eos", "padding", "eot")}
    file = open_model(tmp_path, "llama", keys=keys)
    assert build_generation_config(file) == {}
    assert token_ids(file) == dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def test_token_id_of_wrong_type_is_refused(tmp_path):
    file = open_model(tmp_path, "llama", keys={"tokenizer.ggml.eos_token_id": "</s>"})
    with pytest.raises(ModelError, match="'</s>', not a token id"):
        build_generation_config(file)
    assert Hyperparameters(file).layers == LAYERS
