"""The features of each kind of tiny model, and how to remove each one.

A test that compares texts checks a feature only if the text changes without it.
"""

from __future__ import annotations

from tests.changes import Change, averaged, filled, head_is_the_embedding, unscale_embedding, untie
from tests.families import FAMILIES
from tests.tiny import SIZES

_ATTENTION_BIASES = filled(0, "q_proj.bias", "k_proj.bias", "v_proj.bias")
_QUERY_AND_KEY_NORMS = filled(1, "q_norm.weight", "k_norm.weight")
_NO_WINDOW = {"sliding_window": SIZES["max_position_embeddings"]}
_UNTIED = {"tie_word_embeddings": False}
_PLAIN_ROTATION = {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}
_WHOLE_ROTATION = {"partial_rotary_factor": 1.0, "rotary_pct": 1.0}
_UNSCALED_ROTATION = {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}

_NO_SOFT_CAP = {"final_logit_softcapping": 30.0}
_GEMMA4: dict[str, Change] = {
    "table of the layers": filled(0, "embed_tokens_per_layer.weight"),
    "window": _NO_WINDOW,
    "final soft-cap": _NO_SOFT_CAP,
    "scales of the layers": filled(1, "layer_scalar"),
    "rotary base": {"rope_parameters": {"full_attention": {"rope_theta": 10.0}}},
}

#: Features of each kind, by name.
PARTICULAR: dict[str, dict[str, Change]] = {
    "llama": {"norms": filled(1, "norm.weight"), "tied head": (_UNTIED, untie)},
    "qwen2": {"attention biases": _ATTENTION_BIASES, "untied head": head_is_the_embedding},
    "gemma3": {"window": _NO_WINDOW, "embedding scale": (_UNTIED, unscale_embedding)},
    "llama-4bit": {
        "scales of the table": averaged("embed_tokens.scales"),
        "biases of the table": averaged("embed_tokens.biases"),
    },
    "qwen2-8bit": {
        "scales of the embedding": averaged("embed_tokens.scales"),
        "scales of the head": averaged("lm_head.scales"),
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
        "embedding scale": ({"text_config": _UNTIED, **_UNTIED}, unscale_embedding),
    },
    "gemma3n": {
        "table of the layers": filled(0, "embed_tokens_per_layer.weight"),
        "shared keys and values": {"text_config": {"num_kv_shared_layers": 0}},
        "window": {"text_config": _NO_WINDOW},
        "final soft-cap": {"text_config": _NO_SOFT_CAP},
        "sparse activation": {"text_config": {"activation_sparsity_pattern": [0.0] * 5}},
        "alternating updates": filled(0, "prediction_coefs.weight", "correction_coefs.weight"),
        "augmented residual": filled(0, "laurel.linear_right.weight"),
    },
    "gemma4": _GEMMA4,
    "gemma4-multimodal": {
        feature: {"text_config": change} if isinstance(change, dict) else change
        for feature, change in _GEMMA4.items()
    },
    "mistral": {"rotary base": _PLAIN_ROTATION, "untied head": head_is_the_embedding},
    "phi": {
        "head bias": filled(0, "lm_head.bias"),
        "partial rotation": {**_WHOLE_ROTATION, "rope_parameters": _WHOLE_ROTATION},
    },
    "phi3": {"rotary factors": _UNSCALED_ROTATION, "untied head": head_is_the_embedding},
    "gpt_neox": {
        "parallel residual": {"use_parallel_residual": False},
        "partial rotation": {**_WHOLE_ROTATION, "rope_parameters": _WHOLE_ROTATION},
        "untied head": head_is_the_embedding,
    },
    "gpt2": {"positions": filled(0, "wpe.weight"), "biases": filled(0, ".bias")},
    "starcoder2": {"biases": filled(0, ".bias")},
    "olmo2": {"query and key norms": _QUERY_AND_KEY_NORMS, "untied head": head_is_the_embedding},
    "granite": {
        "logits scaling": {"logits_scaling": 1.0},
        "embedding multiplier": {"embedding_multiplier": 1.0},
        "residual multiplier": {"residual_multiplier": 1.0},
        "attention multiplier": {"attention_multiplier": 12**-0.5},
    },
    "cohere": {"logit scale": {"logit_scale": 1.0}, "rotary base": _PLAIN_ROTATION},
    "smollm3": {"layers without rotation": {"no_rope_layers": [1, 1, 1]}},
    "deepseek-coder": {"scaled rotation": _UNSCALED_ROTATION, "untied head": head_is_the_embedding},
    "falcon_h1": {
        "head multiplier": {"lm_head_multiplier": 1.0},
        "embedding multiplier": {"embedding_multiplier": 1.0},
        "path around the state": filled(0, "mamba.D"),
        "convolution bias": filled(0, "conv1d.bias"),
    },
    "mamba": {"path around the state": filled(0, "mixer.D"), "convolution bias": filled(0, "conv1d.bias")},
    "qwen3_moe": {
        "experts per token": {"num_experts_per_tok": 1},
        "query and key norms": _QUERY_AND_KEY_NORMS,
    },
    "gpt_oss": {
        "window": _NO_WINDOW,
        "attention sinks": filled(-1e4, "sinks"),
        "scaled rotation": _UNSCALED_ROTATION,
        "experts per token": {"num_experts_per_tok": 1, "experts_per_token": 1},
    },
    **{kind: dict(family.features) for kind, family in FAMILIES.items()},
}
