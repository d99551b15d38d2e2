"""Rotary parameters of a GGUF file in the words of config.json.

They are written twice, at the top level (which mlx-lm's llama and qwen2 read) and as transformers 5's
`rope_parameters`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from converters.gguf_metadata import Hyperparameters


def rope(hyper: Hyperparameters, default_theta: float) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rope_parameters`.

    Raises:
        ModelError: RoPE is scaled in a way that config.json cannot express.
    """
    theta = hyper.number("rope.freq_base", default_theta)
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
        divisors = read_factors(hyper, "rope_freqs.weight")
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


def read_factors(hyper: Hyperparameters, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A tensor of one float32 value for each pair of dimensions that RoPE turns, or of another `shape`.

    Raises:
        ModelError: the tensor is missing or differs.
    """
    shapes = {(hyper.head_dim // 2,), (rotated(hyper) // 2,)} if shape is None else {shape}
    tensor = hyper.file.tensors.get(name)
    if tensor is None or tensor.type_name != "F32" or tensor.shape not in shapes:
        raise hyper.fail(f"{name} is not a row of {max(shapes)[0]} float32 values.")
    return np.frombuffer(hyper.file.read(tensor.offset, tensor.nbytes), "<f4")


def rotated(hyper: Hyperparameters) -> int:
    """Dimensions of an attention head that RoPE turns."""
    return hyper.count("rope.dimension_count", hyper.head_dim)


def check_full_rotation(hyper: Hyperparameters) -> None:
    """Check that RoPE turns all dimensions of a head, for models whose configuration cannot say otherwise.

    Raises:
        ModelError: it turns a part of them.
    """
    if rotated(hyper) != hyper.head_dim:
        raise hyper.fail(f"RoPE over {rotated(hyper)} of {hyper.head_dim} dimensions is not supported here.")


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
        **{name: read_factors(hyper, tensor).astype(float).tolist() for name, tensor in factors.items()},
        "original_max_position_embeddings": hyper.count("rope.scaling.original_context_length"),
    }
