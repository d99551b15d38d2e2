"""Metadata and tensors of small GGUF models, one for each architecture, with values that tell rows apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters.gguf_file import GGUFFile
from tests.converters.gguf_writer import F32, Tensor, write_gguf

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, ROWS = 32, 64, 4, 2, 8, 2, 12

_WIDTHS = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_qkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
    "attn_q_norm": (HEAD_DIM,),
    "attn_k_norm": (HEAD_DIM,),
}
_LLAMA = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "attn_norm",
    "ffn_norm",
]
_SANDWICH = [*_LLAMA, "post_attention_norm", "post_ffw_norm"]
_QK_NORMS = ["attn_q_norm", "attn_k_norm"]
MODULES = {
    "llama": _LLAMA,
    "smollm3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": [*_LLAMA, *_QK_NORMS],
    "gemma": _LLAMA,
    "gemma2": _SANDWICH,
    "gemma3": [*_SANDWICH, *_QK_NORMS],
    "phi3": ["attn_qkv", "attn_output", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"],
}
BIASES = {"qwen2": ["attn_q", "attn_k", "attn_v"]}


def metadata(architecture: str, **changes: Any) -> dict[str, Any]:
    """Keys without their `{architecture}.`; `changes` with None leave a key out."""
    values = {
        "context_length": 128,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": INTERMEDIATE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        **changes,
    }
    prefixed = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture, **prefixed}


def weights(architecture: str, *, layers: int = LAYERS, untied: bool = False) -> dict[str, np.ndarray]:
    """GGUF name -> values: no two alike."""
    generator = np.random.default_rng(7)
    modules = MODULES[architecture]
    up = (2 * INTERMEDIATE, HIDDEN) if architecture == "phi3" else _WIDTHS["ffn_up"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (ROWS, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    if untied:
        shapes["output.weight"] = (ROWS, HIDDEN)
    for layer in range(layers):
        for module in modules:
            shape = up if module == "ffn_up" else _WIDTHS.get(module, (HIDDEN,))
            shapes[f"blk.{layer}.{module}.weight"] = shape
            if module in BIASES.get(architecture, ()):
                shapes[f"blk.{layer}.{module}.bias"] = shape[:1]
    return {name: generator.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def open_model(
    path: Path,
    architecture: str,
    values: dict[str, np.ndarray] | None = None,
    *,
    keys: dict[str, Any] | None = None,
    **changes: Any,
) -> GGUFFile:
    """Writes and opens a model; `keys`: metadata with whole names, `changes`: those of `metadata`."""
    values = weights(architecture) if values is None else values
    tensors = {name: Tensor.of(value, F32) for name, value in values.items()}
    everything = {**metadata(architecture, **changes), **(keys or {})}
    return GGUFFile(write_gguf(path / "model.gguf", everything, tensors))
