"""The configuration of each architecture that a converted GGUF file may have, one row each in `FAMILIES`.

How llama.cpp writes the metadata was read in its converter and in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from converters.gguf_metadata import Hyperparameters
from converters.gguf_rope import read_factors, rope, rotated

_GELU = "gelu_pytorch_tanh"
#: Rotary base of the layers of newer Gemmas that attend to the whole text, and of the other layers.
_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def _check_full_rotation(hyper: Hyperparameters) -> None:
    if rotated(hyper) != hyper.head_dim:
        raise hyper.fail(f"RoPE over {rotated(hyper)} of {hyper.head_dim} dimensions is not supported here.")


def _has_bias(hyper: Hyperparameters, module: str) -> bool:
    return f"blk.0.{module}.bias" in hyper.file.tensors


def _llama(hyper: Hyperparameters) -> dict[str, Any]:
    _check_full_rotation(hyper)
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
    _check_full_rotation(hyper)
    return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": hyper.layers}


def _qwen3(hyper: Hyperparameters) -> dict[str, Any]:
    return {**_qwen2(hyper), "head_dim": hyper.head_dim, "attention_bias": _has_bias(hyper, "attn_q")}


def _gemma(hyper: Hyperparameters) -> dict[str, Any]:
    return {**_gemma_activation(), "head_dim": hyper.head_dim}


def _gemma_activation() -> dict[str, Any]:
    return {"hidden_act": _GELU, "hidden_activation": _GELU, "attention_bias": False}


def _gemma2(hyper: Hyperparameters) -> dict[str, Any]:
    return {
        **_gemma(hyper),
        "query_pre_attn_scalar": _query_scalar(hyper, averaged_from_layers=46),
        "attn_logit_softcapping": hyper.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": hyper.number("final_logit_softcapping", 30.0),
        "sliding_window": hyper.count("attention.sliding_window", 4096),
        "layer_types": _layer_types(hyper.layers, 2),
    }


def _gemma3(hyper: Hyperparameters) -> dict[str, Any]:
    window = _window(hyper)
    period = hyper.count("attention.sliding_window_pattern", 6 if window else 1)
    shared = rope(hyper, _GLOBAL_THETA)
    local = hyper.number("rope.freq_base_swa", _LOCAL_THETA)
    return {
        **_gemma(hyper),
        "query_pre_attn_scalar": _query_scalar(hyper, averaged_from_layers=62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": _capping(hyper),
        "sliding_window": window or hyper.count("context_length"),
        "sliding_window_pattern": period,
        "layer_types": _layer_types(hyper.layers, period),
        **shared,
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": shared["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "use_bidirectional_attention": False,
    }


def _window(hyper: Hyperparameters) -> int | None:
    """Width of the sliding window; None where the file has none, or 0."""
    return hyper.count("attention.sliding_window") if hyper.get("attention.sliding_window", 0) else None


def _layer_types(layers: int, period: int) -> list[str]:
    """Every `period`-th layer attends to the whole text, the others to a window."""
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def _query_scalar(hyper: Hyperparameters, averaged_from_layers: int) -> int:
    """Attention scores are divided by its root: a head's width, but hidden size / heads in 27B models."""
    if hyper.has("attention.scale"):
        return round(hyper.number("attention.scale") ** -2)
    if hyper.layers == averaged_from_layers:
        return hyper.count("embedding_length") // hyper.count("attention.head_count")
    return hyper.head_dim


def _phi3(hyper: Hyperparameters) -> dict[str, Any]:
    context = hyper.count("context_length")
    return {
        "original_max_position_embeddings": hyper.count("rope.scaling.original_context_length", context),
        "partial_rotary_factor": rotated(hyper) / hyper.head_dim,
        "sliding_window": _window(hyper),
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _each_layer(hyper: Hyperparameters) -> list[str]:
    """The kinds of layers where the file lists which ones attend to a window."""
    windows = hyper.flags("attention.sliding_window_pattern")
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _per_layer_table(hyper: Hyperparameters) -> dict[str, Any]:
    """The table in which the layers look tokens up, and the layers that share keys and values."""
    table = hyper.file.tensors.get("per_layer_token_embd.weight")
    shared = "attention.shared_kv_layers"
    return {
        "hidden_size_per_layer_input": hyper.count("embedding_length_per_layer_input") if table else 0,
        "vocab_size_per_layer_input": table.shape[0] if table else 0,
        "num_kv_shared_layers": hyper.count(shared) if hyper.get(shared, 0) else 0,
    }


def _gemma3n(hyper: Hyperparameters) -> dict[str, Any]:
    _check_full_rotation(hyper)
    theta = hyper.number("rope.freq_base", _GLOBAL_THETA)
    # The share of a layer's activations that is cut off; the file has the matching quantile.
    sparsity = [round(NormalDist().cdf(scale), 6) for scale in hyper.numbers("activation_sparsity_scale")]
    return {
        **_gemma(hyper),
        **_per_layer_table(hyper),
        # llama.cpp pads the table. The model takes the row of id 0 for the tokens after its end.
        "vocab_size_per_layer_input": hyper.used_rows("per_layer_token_embd.weight"),
        "intermediate_size": hyper.counts("feed_forward_length"),
        "final_logit_softcapping": hyper.number("final_logit_softcapping", 30.0),
        "sliding_window": hyper.count("attention.sliding_window"),
        "layer_types": _each_layer(hyper),
        "activation_sparsity_pattern": sparsity,
        "altup_num_inputs": hyper.count("altup.num_inputs"),
        "altup_active_idx": hyper.counts("altup.active_idx")[0],
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "laurel_rank": hyper.shape("blk.0.laurel_l.weight")[0],
        "rope_theta": theta,
        "rope_local_base_freq": _LOCAL_THETA,
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_THETA},
        },
    }


def _gemma4(hyper: Hyperparameters) -> dict[str, Any]:
    kinds, shared = _each_layer(hyper), _per_layer_table(hyper)
    local, whole = hyper.count("attention.key_length_swa"), hyper.count("attention.key_length")
    if hyper.count("rope.dimension_count_swa", local) != local:
        raise hyper.fail("RoPE over a part of the dimensions of its local layers is not supported.")
    widths = hyper.counts("feed_forward_length")
    doubled = widths[-1] == 2 * widths[0]
    own = hyper.layers - shared["num_kv_shared_layers"]
    if widths != [widths[0]] * own + [widths[-1]] * (hyper.layers - own) or widths[-1] not in (
        widths[0],
        2 * widths[0],
    ):
        raise hyper.fail("its layers have other widths than those of Gemma 4.")
    heads, keys_only = hyper.counts("attention.head_count_kv"), not _has_values(hyper, kinds)
    per_kind = {kind: {heads[layer] for layer, of in enumerate(kinds) if of == kind} for kind in kinds}
    if any(len(counts) > 1 for counts in per_kind.values()) or (len(set(heads)) > 1 and not keys_only):
        raise hyper.fail("its layers have other heads than those of Gemma 4.")
    return {
        **_gemma_activation(),
        **shared,
        "head_dim": local,
        "global_head_dim": whole,
        "intermediate_size": widths[0],
        "use_double_wide_mlp": doubled,
        "num_key_value_heads": min(per_kind.get("sliding_attention", {heads[0]})),
        "num_global_key_value_heads": min(per_kind["full_attention"]) if keys_only else None,
        "attention_k_eq_v": keys_only,
        "final_logit_softcapping": _capping(hyper),
        "sliding_window": hyper.count("attention.sliding_window"),
        "layer_types": kinds,
        "enable_moe_block": False,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": _turned(hyper, whole),
                "rope_theta": hyper.number("rope.freq_base", _GLOBAL_THETA),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": hyper.number("rope.freq_base_swa", _LOCAL_THETA),
            },
        },
    }


def _capping(hyper: Hyperparameters) -> float | None:
    return hyper.number("final_logit_softcapping") if hyper.has("final_logit_softcapping") else None


def _has_values(hyper: Hyperparameters, kinds: list[str]) -> bool:
    """Whether the layers that attend to the whole text have values of their own, not their keys."""
    whole = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return any(f"blk.{layer}.attn_v.weight" in hyper.file.tensors for layer in whole) or not whole


def _turned(hyper: Hyperparameters, width: int) -> float:
    """The share of a head's dimensions that RoPE turns: the file divides the other frequencies by 1e30."""
    divisors = read_factors(hyper, "rope_freqs.weight", (width // 2,))
    turned = int((divisors == 1).sum())
    if not turned or (divisors[:turned] != 1).any() or (divisors[turned:] < 1e20).any():
        raise hyper.fail("rope_freqs.weight holds a RoPE scaling other than Gemma 4's.")
    return turned / len(divisors)


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
    _check_full_rotation(hyper)
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
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "gemma3n": Family(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        _gemma3n,
        wrapper=Wrapper("gemma3n", "Gemma3nForConditionalGeneration"),
    ),
    "gemma4": Family("gemma4_text", "Gemma4ForCausalLM", _gemma4),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "granitehybrid": Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", _granite_hybrid, experts=True),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", _lfm2, _GLOBAL_THETA),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
}
