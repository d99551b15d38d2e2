"""The configurations of the Gemma models in GGUF files: the fields that not every model has."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from converters.gguf_metadata import Hyperparameters
from converters.gguf_rope import check_full_rotation, read_factors, rope

_GELU = "gelu_pytorch_tanh"
#: Rotary base of the layers of newer Gemmas that attend to the whole text, and of the other layers.
_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def gemma(hyper: Hyperparameters) -> dict[str, Any]:
    """Gemma 1."""
    return {**_gemma_activation(), "head_dim": hyper.head_dim}


def _gemma_activation() -> dict[str, Any]:
    return {"hidden_act": _GELU, "hidden_activation": _GELU, "attention_bias": False}


def gemma2(hyper: Hyperparameters) -> dict[str, Any]:
    """Gemma 2."""
    return {
        **gemma(hyper),
        "query_pre_attn_scalar": _query_scalar(hyper, averaged_from_layers=46),
        "attn_logit_softcapping": hyper.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": hyper.number("final_logit_softcapping", 30.0),
        "sliding_window": hyper.count("attention.sliding_window", 4096),
        "layer_types": _layer_types(hyper.layers, 2),
    }


def gemma3(hyper: Hyperparameters) -> dict[str, Any]:
    """Gemma 3."""
    period = hyper.count("attention.sliding_window_pattern", 6 if hyper.window else 1)
    shared = rope(hyper, _GLOBAL_THETA)
    local = hyper.number("rope.freq_base_swa", _LOCAL_THETA)
    return {
        **gemma(hyper),
        "query_pre_attn_scalar": _query_scalar(hyper, averaged_from_layers=62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": _capping(hyper),
        "sliding_window": hyper.window or hyper.count("context_length"),
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


def gemma3n(hyper: Hyperparameters) -> dict[str, Any]:
    """Gemma 3n."""
    check_full_rotation(hyper)
    theta = hyper.number("rope.freq_base", _GLOBAL_THETA)
    # The share of a layer's activations that is cut off; the file has the matching quantile.
    sparsity = [round(NormalDist().cdf(scale), 6) for scale in hyper.numbers("activation_sparsity_scale")]
    return {
        **gemma(hyper),
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


def gemma4(hyper: Hyperparameters) -> dict[str, Any]:
    """Gemma 4."""
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
