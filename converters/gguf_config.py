"""config.json of a GGUF file: what transformers and mlx-lm need to build the model of its metadata.

RoPE is written twice, at the top level (which mlx-lm's llama and qwen2 read) and as transformers 5's
`rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.gguf_file import GGUFFile, StringArray
from vt_core.errors import ModelError

_ABSENT = object()
_GELU = "gelu_pytorch_tanh"


class Hyperparameters:
    """The metadata of one architecture.

    Each getter raises ModelError for a value that is missing or of another kind.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture: str = file.metadata["general.architecture"]

    def fail(self, sentence: str) -> ModelError:
        return ModelError(f"{self.file.path}: {sentence}")

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def get(self, key: str, default: Any = _ABSENT) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if value is _ABSENT:
            raise self.fail(f"the metadata lack {name}, without which the model cannot be built.")
        if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
            return value[0].item()
        if isinstance(value, (np.ndarray, StringArray)):
            raise self.fail(f"{name} differs from layer to layer, which is not supported.")
        return value

    def count(self, key: str, default: Any = _ABSENT) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise self.fail(f"{self.architecture}.{key} is {value!r}, not a positive count.")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.fail(f"{self.architecture}.{key} is {value!r}, not a finite number.")
        return float(value)

    @property
    def layers(self) -> int:
        return self.count("block_count")

    @property
    def head_dim(self) -> int:
        """Width of an attention head.

        Raises:
            ModelError: it is not one even number.
        """
        hidden, heads = self.count("embedding_length"), self.count("attention.head_count")
        if not self.has("attention.key_length") and hidden % heads:
            raise self.fail(f"the width {hidden} is not a multiple of the {heads} attention heads.")
        width = self.count("attention.key_length", hidden // heads)
        if self.count("attention.value_length", width) != width or width % 2:
            raise self.fail("keys and values of different or odd widths are not supported.")
        return width


def build_config(file: GGUFFile, vocab_size: int, tied: bool, dtype: str) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        ModelError: metadata are missing, or no known model has them.
    """
    hyper = Hyperparameters(file)
    family = FAMILIES[hyper.architecture]
    if hyper.get("expert_count", 0):
        raise hyper.fail("models with experts are not supported.")
    heads = hyper.count("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hyper.count("embedding_length"),
        "intermediate_size": hyper.count("feed_forward_length"),
        "num_hidden_layers": hyper.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": hyper.count("attention.head_count_kv", heads),
        "max_position_embeddings": hyper.count("context_length"),
        "rms_norm_eps": hyper.number("attention.layer_norm_rms_epsilon"),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "use_cache": True,
        "torch_dtype": dtype,
        **token_ids(file),
        **rope(hyper, family),
    }
    config.update(family.extra(hyper))
    return config


def token_ids(file: GGUFFile) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id`, `pad_token_id`; None where the file names no token."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {ours: _token_id(file, theirs) for ours, theirs in names.items()}


def _token_id(file: GGUFFile, role: str) -> int | None:
    id = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if id is not None and not isinstance(id, int):
        raise ModelError(f"{file.path}: tokenizer.ggml.{role}_token_id is {id!r}, not a token id.")
    table = file.tensors.get("token_embd.weight")
    return id if id is not None and id >= 0 and (table is None or id < table.shape[0]) else None


def build_generation_config(file: GGUFFile) -> dict[str, Any]:
    """Content of generation_config.json: the ids that begin, pad and end a text, a turn or a message."""
    ends = [id for role in ("eos", "eot", "eom") if (id := _token_id(file, role)) is not None]
    ids: dict[str, Any] = dict(token_ids(file))
    if len(set(ends)) > 1:
        ids["eos_token_id"] = list(dict.fromkeys(ends))
    return {key: id for key, id in ids.items() if id is not None}


def rope(hyper: Hyperparameters, family: Family) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rope_parameters`."""
    theta = hyper.number("rope.freq_base", family.rope_theta)
    scaling = _scaling(hyper)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
    }


def _scaling(hyper: Hyperparameters) -> dict[str, Any] | None:
    """What stretches RoPE, None for nothing; transformers looks for `rope_type`, mlx-lm for `type`."""
    if "rope_factors_long.weight" in hyper.file.tensors:
        return _long_scaling(hyper)
    if "rope_freqs.weight" in hyper.file.tensors:
        divisors = _read_factors(hyper, "rope_freqs.weight")
        if not np.all(divisors == 1):
            return _llama3_scaling(hyper, divisors)
    kind = hyper.get("rope.scaling.type", "linear")
    factor = hyper.number("rope.scaling.factor", hyper.get("rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return None
    scaling: dict[str, Any] = {"type": kind, "rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = hyper.count("rope.scaling.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            if hyper.has(f"rope.scaling.yarn_{name}"):
                scaling[name] = hyper.number(f"rope.scaling.yarn_{name}")
    elif kind != "linear":
        raise hyper.fail(f"RoPE scaling of the type {kind!r} is not supported.")
    return scaling


def _read_factors(hyper: Hyperparameters, name: str) -> np.ndarray:
    tensor = hyper.file.tensors[name]
    if tensor.type_name != "F32" or tensor.shape not in {(hyper.head_dim // 2,), (_rotated(hyper) // 2,)}:
        raise hyper.fail(f"{name} is not a row of {hyper.head_dim // 2} float32 values.")
    return np.frombuffer(hyper.file.read(tensor.offset, tensor.nbytes), "<f4")


def _rotated(hyper: Hyperparameters) -> int:
    return hyper.count("rope.dimension_count", hyper.head_dim)


def _llama3_scaling(hyper: Hyperparameters, divisors: np.ndarray) -> dict[str, Any]:
    """Llama 3's scaling out of what GGUF keeps of it: a divisor for each frequency.

    These came from four numbers. Every published model has 1, 4 and 8192 beside its own factor; that they
    give the divisors is checked.
    """
    low, high, context, factor = 1.0, 4.0, 8192, float(divisors.max())
    theta, width = hyper.number("rope.freq_base", 10_000.0), hyper.head_dim
    turns = context / (2 * math.pi * theta ** (np.arange(0, width, 2) / width))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if len(expected) != len(divisors) or not np.allclose(divisors, expected, rtol=1e-4):
        raise hyper.fail(
            "rope_freqs.weight holds a RoPE scaling other than Llama 3's, which is not supported."
        )
    return {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _long_scaling(hyper: Hyperparameters) -> dict[str, Any]:
    factors = {name: f"rope_factors_{name.split('_')[0]}.weight" for name in ("long_factor", "short_factor")}
    if not hyper.file.tensors.keys() >= set(factors.values()):
        raise hyper.fail("one of rope_factors_long.weight and rope_factors_short.weight is missing.")
    return {
        "type": "longrope",
        "rope_type": "longrope",
        **{name: _read_factors(hyper, tensor).astype(float).tolist() for name, tensor in factors.items()},
        "original_max_position_embeddings": hyper.count("rope.scaling.original_context_length"),
    }


def _check_full_rotation(hyper: Hyperparameters) -> None:
    if _rotated(hyper) != hyper.head_dim:
        raise hyper.fail(f"RoPE over {_rotated(hyper)} of {hyper.head_dim} dimensions is not supported here.")


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
    return {
        "head_dim": hyper.head_dim,
        "hidden_act": _GELU,
        "hidden_activation": _GELU,
        "attention_bias": False,
    }


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
    shared = rope(hyper, FAMILIES["gemma3"])
    local = hyper.number("rope.freq_base_swa", 10_000.0)
    capping = hyper.number("final_logit_softcapping") if hyper.has("final_logit_softcapping") else None
    return {
        **_gemma(hyper),
        "query_pre_attn_scalar": _query_scalar(hyper, averaged_from_layers=62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": capping,
        "sliding_window": window or hyper.count("context_length"),
        "sliding_window_pattern": period,
        "layer_types": _layer_types(hyper.layers, period),
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
        "partial_rotary_factor": _rotated(hyper) / hyper.head_dim,
        "sliding_window": _window(hyper),
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


@dataclass(frozen=True)
class Family:
    """What the configurations of one GGUF architecture have in common."""

    model_type: str
    model_class: str
    extra: Callable[[Hyperparameters], dict[str, Any]]
    rope_theta: float = 10_000.0


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _qwen2),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen3),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3, rope_theta=1_000_000.0),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
}
