"""What is particular to each kind of tiny model, and how to take it away: a configuration or weights without
it. A test that compares texts looks at a feature only if the text is another one without it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.tiny import SIZES

Tensors = dict[str, Any]
#: What ``config.json`` says instead, objects merged, or what becomes of the tensors; some need both.
Change = dict | Callable[[Tensors], None] | tuple[dict, Callable[[Tensors], None]]


def write_without(source: Path, directory: Path, change: Change) -> Path:
    """A copy of a model that :func:`tests.tiny.write_model` wrote, with a feature taken away."""
    shutil.copytree(source, directory)
    settings = change if isinstance(change, dict) else {}
    edit = change if callable(change) else None
    if isinstance(change, tuple):
        settings, edit = change
    config = directory / "config.json"
    config.write_text(json.dumps(_merged(json.loads(config.read_text()), settings)))
    if edit is not None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    return directory


def _merged(config: dict, settings: dict) -> dict:
    both = {
        name: _merged(config[name], value)
        for name, value in settings.items()
        if isinstance(value, dict) and isinstance(config.get(name), dict)
    }
    return config | settings | both


def _filled(value: float, *endings: str) -> Callable[[Tensors], None]:
    """The tensors with names that end so get one value."""

    def edit(tensors: Tensors) -> None:
        for tensor in _chosen(tensors, *endings):
            tensor.fill_(value)

    return edit


def _chosen(tensors: Tensors, *endings: str) -> list:
    chosen = [tensor for name, tensor in tensors.items() if name.endswith(endings)]
    assert chosen, endings
    return chosen


def _averaged(*endings: str) -> Callable[[Tensors], None]:
    """The tensors with names that end so have their mean everywhere."""

    def edit(tensors: Tensors) -> None:
        for tensor in _chosen(tensors, *endings):
            tensor.fill_(tensor.mean())

    return edit


def _head_is_the_embedding(tensors: Tensors) -> None:
    (head,), (embedding,) = _chosen(tensors, *_HEADS), _chosen(tensors, *_EMBEDDINGS)
    head.copy_(embedding)


def _head_of_its_own(tensors: Tensors) -> None:
    (embedding,) = _chosen(tensors, *_EMBEDDINGS)
    # Padding rows stay zero.
    tensors["lm_head.weight"] = embedding.roll(1, dims=1)


def _embedding_as_it_is(tensors: Tensors) -> None:
    """Gemma's factor is no setting: an embedding divided by it, and the head as it was."""
    (name,) = [name for name in tensors if name.endswith(_EMBEDDINGS)]
    embedding = tensors[name]
    tensors[name.replace("model.embed_tokens", "lm_head")] = embedding.clone()
    embedding /= math.sqrt(embedding.shape[1])


_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "embeddings.weight")
_ATTENTION_BIASES = _filled(0, "q_proj.bias", "k_proj.bias", "v_proj.bias")
_QUERY_AND_KEY_NORMS = _filled(1, "q_norm.weight", "k_norm.weight")
_NO_WINDOW = {"sliding_window": SIZES["max_position_embeddings"]}
_UNTIED = {"tie_word_embeddings": False}
_PLAIN_ROTATION = {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}
_WHOLE_ROTATION = {"partial_rotary_factor": 1.0, "rotary_pct": 1.0}
_UNSCALED_ROTATION = {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}

_NO_SOFT_CAP = {"final_logit_softcapping": 30.0}
_GEMMA4: dict[str, Change] = {
    "table of the layers": _filled(0, "embed_tokens_per_layer.weight"),
    "window": _NO_WINDOW,
    "final soft-cap": _NO_SOFT_CAP,
    "scales of the layers": _filled(1, "layer_scalar"),
    "rotary base": {"rope_parameters": {"full_attention": {"rope_theta": 10.0}}},
}

#: Features of each kind, by name.
PARTICULAR: dict[str, dict[str, Change]] = {
    "llama": {"norms": _filled(1, "norm.weight"), "tied head": (_UNTIED, _head_of_its_own)},
    "qwen2": {"attention biases": _ATTENTION_BIASES, "untied head": _head_is_the_embedding},
    "gemma3": {"window": _NO_WINDOW, "embedding scale": (_UNTIED, _embedding_as_it_is)},
    "llama-4bit": {
        "scales of the table": _averaged("embed_tokens.scales"),
        "biases of the table": _averaged("embed_tokens.biases"),
    },
    "qwen2-8bit": {
        "scales of the embedding": _averaged("embed_tokens.scales"),
        "scales of the head": _averaged("lm_head.scales"),
        "attention biases": _ATTENTION_BIASES,
    },
    "qwen3": {"query and key norms": _QUERY_AND_KEY_NORMS},
    "gemma2": {
        "final soft-cap": _NO_SOFT_CAP,
        "attention soft-cap": {"attn_logit_softcapping": 500.0},
        "attention scale": {"query_pre_attn_scalar": 16},
    },
    "gemma3-multimodal": {
        "window": {"text_config": _NO_WINDOW},
        "embedding scale": ({"text_config": _UNTIED, **_UNTIED}, _embedding_as_it_is),
    },
    "gemma3n": {
        "table of the layers": _filled(0, "embed_tokens_per_layer.weight"),
        "shared keys and values": {"text_config": {"num_kv_shared_layers": 0}},
        "window": {"text_config": _NO_WINDOW},
        "final soft-cap": {"text_config": _NO_SOFT_CAP},
        "sparse activation": {"text_config": {"activation_sparsity_pattern": [0.0] * 5}},
        "alternating updates": _filled(0, "prediction_coefs.weight", "correction_coefs.weight"),
        "augmented residual": _filled(0, "laurel.linear_right.weight"),
    },
    "gemma4": _GEMMA4,
    "gemma4-multimodal": {
        feature: {"text_config": change} if isinstance(change, dict) else change
        for feature, change in _GEMMA4.items()
    },
    "mistral": {"rotary base": _PLAIN_ROTATION, "untied head": _head_is_the_embedding},
    "phi": {
        "head bias": _filled(0, "lm_head.bias"),
        "partial rotation": {**_WHOLE_ROTATION, "rope_parameters": _WHOLE_ROTATION},
    },
    "phi3": {"rotary factors": _UNSCALED_ROTATION, "untied head": _head_is_the_embedding},
    "gpt_neox": {
        "parallel residual": {"use_parallel_residual": False},
        "partial rotation": {**_WHOLE_ROTATION, "rope_parameters": _WHOLE_ROTATION},
        "untied head": _head_is_the_embedding,
    },
    "gpt2": {"positions": _filled(0, "wpe.weight"), "biases": _filled(0, ".bias")},
    "starcoder2": {"biases": _filled(0, ".bias")},
    "olmo2": {"query and key norms": _QUERY_AND_KEY_NORMS, "untied head": _head_is_the_embedding},
    "granite": {
        "logits scaling": {"logits_scaling": 1.0},
        "embedding multiplier": {"embedding_multiplier": 1.0},
        "residual multiplier": {"residual_multiplier": 1.0},
        "attention multiplier": {"attention_multiplier": 12**-0.5},
    },
    "cohere": {"logit scale": {"logit_scale": 1.0}, "rotary base": _PLAIN_ROTATION},
    "smollm3": {"layers without rotation": {"no_rope_layers": [1, 1, 1]}},
    "deepseek-coder": {"scaled rotation": _UNSCALED_ROTATION, "untied head": _head_is_the_embedding},
    "falcon_h1": {
        "head multiplier": {"lm_head_multiplier": 1.0},
        "embedding multiplier": {"embedding_multiplier": 1.0},
        "path around the state": _filled(0, "mamba.D"),
        "convolution bias": _filled(0, "conv1d.bias"),
    },
    "mamba": {"path around the state": _filled(0, "mixer.D"), "convolution bias": _filled(0, "conv1d.bias")},
    "qwen3_moe": {
        "experts per token": {"num_experts_per_tok": 1},
        "query and key norms": _QUERY_AND_KEY_NORMS,
    },
    "gpt_oss": {
        "window": _NO_WINDOW,
        "attention sinks": _filled(-1e4, "sinks"),
        "scaled rotation": _UNSCALED_ROTATION,
        "experts per token": {"num_experts_per_tok": 1, "experts_per_token": 1},
    },
}
