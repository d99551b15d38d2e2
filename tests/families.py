"""Tiny models of families that docs/models.md lists, one row each, in the layout in which they are published.

`tests.tiny` writes them, and tests/backends/test_architectures.py compares their ids with those of the stock
framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.changes import Change, averaged, filled, head_is_the_embedding

Json = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A tiny model of one family."""

    #: Configuration class of transformers, and how the model differs from `tests.tiny.SIZES`.
    config_class: str
    options: Json
    #: What is typical of the family, and what takes it away (see `tests.changes`).
    features: Mapping[str, Change]
    #: What published config.json files say besides, and mlx-lm needs.
    published: Json = field(default_factory=dict)
    #: Backends whose stock framework runs it on a CPU, and why another one does not.
    backends: tuple[str, ...] = ("torch", "mlx")
    why_not: str = ""
    #: The model that also takes images within which the family is published.
    wrapper: Wrapper | None = None


@dataclass(frozen=True)
class Wrapper:
    """A published model around a language model."""

    config: Json
    #: The name of a tensor of the language model in the published files.
    rename: Callable[[str], str]
    #: Names of tensors that are published too and that no text needs.
    others: tuple[str, ...]


_NO_WINDOW = {"sliding_window": 512}
_WINDOW = {"sliding_window": 16}
_UNTIED = {"untied head": head_is_the_embedding}
_QUERY_AND_KEY_NORMS = filled(1, "q_norm.weight", "k_norm.weight")
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_STATE = {
    "path around the state": filled(0, ".D"),
    "convolution bias": filled(0, "conv1d.bias"),
}
_GRANITE = {
    "tie_word_embeddings": True,
    "logits_scaling": 3.0,
    "embedding_multiplier": 4.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 96,
}
_GRANITE_FEATURES = {
    "logits scaling": {"logits_scaling": 1.0},
    "embedding multiplier": {"embedding_multiplier": 1.0},
    "attention multiplier": {"attention_multiplier": 12**-0.5},
}
_GRANITE_HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "position_embedding_type": "nope",
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_GRANITE_EXPERTS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 32,
    "shared_intermediate_size": 64,
}
_JAMBA = {"attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "patch_size": 14}


def _hybrid(first: str, second: str) -> list[str]:
    return [first, second, first]


FAMILIES: dict[str, Family] = {
    "apertus": Family(
        "ApertusConfig",
        {"rope_parameters": {**_ROPE, "rope_theta": 1e6}, "hidden_act": "xielu"},
        {
            "query and key norms": _QUERY_AND_KEY_NORMS,
            "activation": filled(0, "alpha_p", "alpha_n"),
            **_UNTIED,
        },
        {"post_norm": False, "qk_norm": True, "mlp_bias": False, "rope_theta": 1e6},
    ),
    "bitnet": Family(
        "BitNetConfig",
        {"tie_word_embeddings": True, "rope_parameters": {**_ROPE, "rope_theta": 5e5}},
        {"norms within layers": filled(1, "attn_sub_norm.weight", "ffn_sub_norm.weight")},
        backends=("torch",),
        why_not="mlx-lm's kernel needs Metal and packed weights",
    ),
    "ernie4_5": Family(
        "Ernie4_5Config",
        {"head_dim": 16, "rope_parameters": {**_ROPE, "rope_theta": 5e5}},
        {"rotary base": {"rope_theta": 1e2, "rope_parameters": {"rope_theta": 1e2}}},
        {"use_bias": False},
    ),
    "exaone4": Family(
        "Exaone4Config",
        {
            **_WINDOW,
            "head_dim": 16,
            "sliding_window_pattern": "LLG",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {**_ROPE, "rope_theta": 1e6},
        },
        {"window": _NO_WINDOW, "query and key norms": _QUERY_AND_KEY_NORMS, **_UNTIED},
        {"rope_scaling": None, "sliding_window_pattern": "LLG"},
    ),
    "falcon_h1-tied": Family(
        "FalconH1Config",
        {
            "tie_word_embeddings": True,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
        },
        {
            "head multiplier": {"lm_head_multiplier": 1.0},
            "embedding multiplier": {"embedding_multiplier": 1.0},
            **_STATE,
        },
        {"head_dim": 12},
    ),
    "glm4": Family(
        "Glm4Config",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
        },
        {"attention biases": filled(0, "q_proj.bias", "k_proj.bias", "v_proj.bias"), **_UNTIED},
        {"partial_rotary_factor": 0.5},
    ),
    "granite4": Family(
        "GraniteMoeHybridConfig",
        {
            **_GRANITE,
            "layer_types": ["full_attention"] * 3,
            "position_embedding_type": "rope",
            "mamba_n_heads": 6,
        },
        _GRANITE_FEATURES,
        {"layer_types": ["attention"] * 3},
    ),
    "granite4-experts": Family(
        "GraniteMoeHybridConfig",
        {**_GRANITE, **_GRANITE_HYBRID, **_GRANITE_EXPERTS},
        {**_GRANITE_FEATURES, **_STATE, "experts": averaged("block_sparse_moe.output_linear.weight")},
        {"layer_types": _hybrid("mamba", "attention")},
    ),
    "granite4-hybrid": Family(
        "GraniteMoeHybridConfig",
        {**_GRANITE, **_GRANITE_HYBRID},
        {**_GRANITE_FEATURES, **_STATE},
        {"layer_types": _hybrid("mamba", "attention")},
    ),
    "helium": Family(
        "HeliumConfig",
        {"head_dim": 12, "rms_norm_eps": 1e-8, "rope_parameters": {**_ROPE, "rope_theta": 1e5}},
        {"rotary base": {"rope_theta": 1e2, "rope_parameters": {"rope_theta": 1e2}}, **_UNTIED},
    ),
    "hunyuan": Family(
        "HunYuanDenseV1Config",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "alpha": 100.0, "factor": 1.0},
        },
        {
            "query and key norms": filled(1, "query_layernorm.weight", "key_layernorm.weight"),
            "stretched rotation": {
                "rope_scaling": {"type": "dynamic", "alpha": 1.0, "factor": 1.0},
                "rope_parameters": {"alpha": 1.0},
            },
        },
        {"rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0}, "use_qk_norm": True},
    ),
    "jamba": Family(
        "JambaConfig",
        {**_JAMBA, "num_experts": 1, "num_experts_per_tok": 1},
        {**_STATE, **_UNTIED},
    ),
    "jamba-experts": Family(
        "JambaConfig",
        {
            **_JAMBA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        {**_STATE, "experts": averaged("experts.1.down_proj.weight")},
    ),
    "lfm2": Family(
        "Lfm2Config",
        {
            "layer_types": _hybrid("conv", "full_attention"),
            "block_auto_adjust_ff_dim": False,
            "rope_parameters": {**_ROPE, "rope_theta": 1e6},
        },
        {
            "query and key norms": filled(1, "q_layernorm.weight", "k_layernorm.weight"),
            "convolutions": averaged("conv.conv.weight"),
        },
        {"block_dim": 48, "block_ff_dim": 96, "full_attn_idxs": [1]},
    ),
    "lfm3": Family(
        "Lfm3Config",
        {
            "head_dim": 16,
            **_WINDOW,
            "layer_types": ["conv", "sliding_attention", "full_attention"],
        },
        {"window": _NO_WINDOW, "convolutions": averaged("conv.conv.weight")},
        backends=("torch",),
        why_not="mlx-lm has no class for it",
    ),
    "mamba2": Family(
        "Mamba2Config",
        {
            "num_heads": 6,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "tie_word_embeddings": False,
        },
        {**_STATE, **_UNTIED},
        {"intermediate_size": 96},
    ),
    "ministral3": Family(
        "Ministral3Config",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.5,
            },
        },
        {
            "scale of late queries": {"text_config": {"rope_parameters": {"llama_4_scaling_beta": 0.0}}},
            "rotary base": {"text_config": {"rope_parameters": {"rope_theta": 1e2}}},
        },
        wrapper=Wrapper(
            {
                "architectures": ["Mistral3ForConditionalGeneration"],
                "model_type": "mistral3",
                "image_token_index": 10,
                "vision_config": {
                    **_VISION,
                    "model_type": "pixtral",
                    "num_hidden_layers": 1,
                    "image_size": 28,
                },
            },
            lambda name: f"language_model.{name}",
            ("vision_tower.patch_conv.weight", "multi_modal_projector.linear_1.weight"),
        ),
    ),
    "nemotron_h": Family(
        "NemotronHConfig",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention"],
            "head_dim": 16,
            "ssm_state_size": 8,
            "mamba_num_heads": 6,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
        {**_STATE, **_UNTIED},
        {"hybrid_override_pattern": "M-*", "layer_norm_epsilon": 1e-5},
    ),
    "olmo3": Family(
        "Olmo3Config",
        {
            **_WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {**_ROPE, "rope_theta": 5e5},
        },
        {"window": _NO_WINDOW, "query and key norms": _QUERY_AND_KEY_NORMS, **_UNTIED},
    ),
    "qwen3_5": Family(
        "Qwen3_5TextConfig",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "full_attention_interval": 3,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        {
            "query and key norms": filled(0, "q_norm.weight", "k_norm.weight"),
            "steps of the deltas": filled(0, "dt_bias"),
            "convolutions": averaged("conv1d.weight"),
        },
        wrapper=Wrapper(
            {
                "architectures": ["Qwen3_5ForConditionalGeneration"],
                "model_type": "qwen3_5",
                "image_token_id": 10,
                "video_token_id": 11,
                "vision_start_token_id": 12,
                "vision_end_token_id": 13,
                "vision_config": {**_VISION, "model_type": "qwen3_5", "depth": 1, "num_heads": 2},
            },
            lambda name: name.replace("model.", "model.language_model.", 1),
            ("model.visual.patch_embed.proj.weight", "mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"),
        ),
    ),
}
