"""The configuration of each architecture that a converted GGUF file may have, one row each in `FAMILIES`.

How llama.cpp writes the metadata was read in its converter and in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.gguf_gemma import gemma, gemma2, gemma3, gemma3n, gemma4
from converters.gguf_metadata import Hyperparameters
from converters.gguf_rope import check_full_rotation, rope, rotated


def _has_bias(hyper: Hyperparameters, module: str) -> bool:
    return f"blk.0.{module}.bias" in hyper.file.tensors


def _llama(hyper: Hyperparameters) -> dict[str, Any]:
    check_full_rotation(hyper)
    return {
        "head_dim": hyper.head_dim,
        "attention_bias": _has_bias(hyper, "attn_q"),
        "mlp_bias": _has_bias(hyper, "ffn_up"),
        "pretraining_tp": 1,
    }


def _smollm3(hyper: Hyperparameters) -> dict[str, Any]:
    # GGUF does not say which layers go without RoPE; in every SmolLM3 each fourth does.
    without = 4
    pattern = [int((i + 1) % without != 0) for i in range(hyper.layers)]
    return {
        **_llama(hyper),
        "no_rope_layer_interval": without,
        "no_rope_layers": pattern,
        "layer_types": ["full_attention"] * hyper.layers,
        "use_sliding_window": False,
        "sliding_window": None,
    }


def _qwen2(hyper: Hyperparameters) -> dict[str, Any]:
    check_full_rotation(hyper)
    return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": hyper.layers}


def _qwen3(hyper: Hyperparameters) -> dict[str, Any]:
    return {**_qwen2(hyper), "head_dim": hyper.head_dim, "attention_bias": _has_bias(hyper, "attn_q")}


def _phi3(hyper: Hyperparameters) -> dict[str, Any]:
    context = hyper.count("context_length")
    return {
        "original_max_position_embeddings": hyper.count("rope.scaling.original_context_length", context),
        "partial_rotary_factor": rotated(hyper) / hyper.head_dim,
        "sliding_window": hyper.window,
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _lfm2(hyper: Hyperparameters) -> dict[str, Any]:
    heads = hyper.counts("attention.head_count_kv")
    width = hyper.count("feed_forward_length")
    return {
        "num_key_value_heads": max(heads),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "full_attn_idxs": [layer for layer, count in enumerate(heads) if count],
        "norm_eps": hyper.number("attention.layer_norm_rms_epsilon"),
        "conv_L_cache": hyper.count("shortconv.l_cache"),
        "conv_bias": any(name.endswith(".shortconv.conv.bias") for name in hyper.file.tensors),
        "block_auto_adjust_ff_dim": False,
        "block_dim": hyper.count("embedding_length"),
        "block_ff_dim": width,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 1,
        "intermediate_size": width,
    }


def _granite(hyper: Hyperparameters) -> dict[str, Any]:
    check_full_rotation(hyper)
    return {
        "attention_bias": _has_bias(hyper, "attn_q"),
        "mlp_bias": _has_bias(hyper, "ffn_up"),
        "intermediate_size": hyper.shape("blk.0.ffn_up.weight")[0],
        **_granite_scales(hyper),
    }


def _granite_scales(hyper: Hyperparameters) -> dict[str, float]:
    return {
        "attention_multiplier": hyper.number("attention.scale"),
        "embedding_multiplier": hyper.number("embedding_scale"),
        "residual_multiplier": hyper.number("residual_scale"),
        "logits_scaling": hyper.number("logit_scale"),
    }


def _granite_hybrid(hyper: Hyperparameters) -> dict[str, Any]:
    heads = hyper.counts("attention.head_count_kv")
    if not any(heads) or all(heads):
        raise hyper.fail("not both kinds of layers, attention and Mamba, are among its layers.")
    inner, hidden = hyper.count("ssm.inner_size"), hyper.count("embedding_length")
    steps = hyper.count("ssm.time_step_rank")
    if inner % hidden or inner % steps:
        raise hyper.fail(f"{inner} inner dimensions do not fit {hidden} dimensions and {steps} heads.")
    mamba = heads.index(0)
    experts = hyper.count("expert_count") if hyper.get("expert_count", 0) else 0
    dense = "ffn_up_shexp" if experts else "ffn_up"
    return {
        **_granite_scales(hyper),
        "num_key_value_heads": max(heads),
        "attention_bias": False,
        "layer_types": ["attention" if count else "mamba" for count in heads],
        "position_embedding_type": "rope" if hyper.get("rope.scaling.finetuned", False) else "nope",
        "intermediate_size": hyper.count("feed_forward_length"),
        "shared_intermediate_size": hyper.shape(f"blk.0.{dense}.weight")[0],
        "num_local_experts": experts,
        "num_experts_per_tok": hyper.count("expert_used_count") if experts else 0,
        "normalization_function": "rmsnorm",
        "mamba_n_heads": steps,
        "mamba_d_head": inner // steps,
        "mamba_d_state": hyper.count("ssm.state_size"),
        "mamba_d_conv": hyper.count("ssm.conv_kernel"),
        "mamba_n_groups": hyper.count("ssm.group_count"),
        "mamba_expand": inner // hidden,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": f"blk.{mamba}.ssm_conv1d.bias" in hyper.file.tensors,
        "mamba_proj_bias": False,
    }


def _qwen35(hyper: Hyperparameters) -> dict[str, Any]:
    interval = hyper.count("full_attention_interval", 4)
    inner, steps, keys = (
        hyper.count(f"ssm.{name}") for name in ("inner_size", "time_step_rank", "group_count")
    )
    if inner % steps or steps % keys:
        raise hyper.fail(f"{steps} heads of values fit neither {inner} dimensions nor {keys} heads of keys.")
    sections = hyper.file.metadata.get("qwen35.rope.dimension_sections", np.array([11, 11, 10]))
    if not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu" or len(sections) < 3:
        raise hyper.fail("qwen35.rope.dimension_sections is not a list of three sizes.")
    turned = rope(hyper, 10_000_000.0)
    turned["partial_rotary_factor"] = rotated(hyper) / hyper.head_dim
    turned["rope_parameters"] |= {
        "partial_rotary_factor": turned["partial_rotary_factor"],
        "mrope_interleaved": True,
        "mrope_section": sections[:3].tolist(),
    }
    return {
        "head_dim": hyper.head_dim,
        "attention_bias": False,
        "full_attention_interval": interval,
        "layer_types": [
            "linear_attention" if (layer + 1) % interval else "full_attention"
            for layer in range(hyper.layers)
        ],
        "linear_conv_kernel_dim": hyper.count("ssm.conv_kernel"),
        "linear_num_key_heads": keys,
        "linear_key_head_dim": hyper.count("ssm.state_size"),
        "linear_num_value_heads": steps,
        "linear_value_head_dim": inner // steps,
        **turned,
    }


@dataclass(frozen=True)
class Wrapper:
    """The model that also takes images, inside which a language model is published and mlx-lm expects it."""

    model_type: str
    model_class: str


@dataclass(frozen=True)
class Family:
    """What the configurations of one GGUF architecture have in common."""

    model_type: str
    model_class: str
    #: Fields that not every model has, or that replace those that every model has.
    extra: Callable[[Hyperparameters], dict[str, Any]]
    rope_theta: float = 10_000.0
    experts: bool = False
    wrapper: Wrapper | None = None


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _qwen2),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen3),
    "qwen35": Family(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        _qwen35,
        wrapper=Wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration"),
    ),
    "gemma": Family("gemma", "GemmaForCausalLM", gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", gemma3),
    "gemma3n": Family(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        gemma3n,
        wrapper=Wrapper("gemma3n", "Gemma3nForConditionalGeneration"),
    ),
    "gemma4": Family("gemma4_text", "Gemma4ForCausalLM", gemma4),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "granitehybrid": Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", _granite_hybrid, experts=True),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", _lfm2, 1_000_000.0),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
}
