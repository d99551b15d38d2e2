"""GGUF files of tiny models, written with the `gguf` package as llama.cpp's converter writes them.

Names of tensors and keys are the package's. What the converter does to values is done here anew, in numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]
Json = dict[str, Any]


def write_gguf(source: Path, path: Path, kind: str) -> Path:
    """Write the model of a Hugging Face directory, one of `KINDS`, as a GGUF file."""
    architecture, describe, change, model_type = KINDS[kind]
    config = json.loads((source / "config.json").read_text())
    config = {**config.get("text_config", config), **model_type}
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _describe(writer, config)
    describe(writer, config)
    _write_tokenizer(writer, source)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    tensors = {
        name.replace("model.language_model.", "model."): values
        for name, values in load_file(source / "model.safetensors").items()
        if "visual" not in name and "mtp" not in name
    }
    for name, values in change(tensors, config).items():
        known = name if name.startswith(("blk.", "rope")) else names.get_name(name, (".weight", ".bias"))
        assert known is not None, f"the gguf package does not know {name}"
        writer.add_tensor(known, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, config: Json) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config.get("norm_eps", config.get("rms_norm_eps")))


def _write_tokenizer(writer: gguf.GGUFWriter, source: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _by_value(array: np.ndarray, axis: int, keys: int, width: int) -> np.ndarray:
    """All first value heads, then all second ones, of value heads that lie together by their key."""
    moved = np.moveaxis(array, axis, 0)
    heads = moved.reshape(keys, -1, width, *moved.shape[1:]).swapaxes(0, 1)
    return np.moveaxis(heads.reshape(moved.shape), 0, axis)


def _describe_qwen35(writer: gguf.GGUFWriter, config: Json) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"] // 2)
    writer.add_rope_dimension_sections([2, 1, 1, 0])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(3)


def _change_qwen35(tensors: Tensors, config: Json) -> Tensors:
    keys, width = config["linear_num_key_heads"], config["linear_value_head_dim"]
    first = 2 * keys * config["linear_key_head_dim"]

    def late_rows(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:first], _by_value(values[first:], 0, keys, width)])

    out = {}
    for name, values in tensors.items():
        part = name.partition("linear_attn.")[2]
        if part in ("in_proj_qkv.weight", "conv1d.weight"):
            values = late_rows(values.squeeze())
        elif part == "in_proj_z.weight":
            values = _by_value(values, 0, keys, width)
        elif part in ("in_proj_a.weight", "in_proj_b.weight"):
            values = _by_value(values, 0, keys, 1)
        elif part == "out_proj.weight":
            values = _by_value(values, 1, keys, width)
        elif part == "A_log":
            values = -np.exp(_by_value(values, 0, keys, 1))
        elif part == "dt_bias":
            name, values = name.replace("dt_bias", "dt_proj.bias"), _by_value(values, 0, keys, 1)
        elif name.endswith("norm.weight") and part != "norm.weight":
            values = values + 1
        out[name] = values
    return out


def _describe_gemma(writer: gguf.GGUFWriter, config: Json) -> None:
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])


def _describe_gemma3n(writer: gguf.GGUFWriter, config: Json) -> None:
    _describe_gemma(writer, config)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(1e6)
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    shares = config["activation_sparsity_pattern"]
    writer.add_activation_sparsity_scale(
        [NormalDist().inv_cdf(share) if share else -np.inf for share in shares]
    )


def _change_gemma3n(tensors: Tensors, config: Json) -> Tensors:
    out = {}
    for name, values in tensors.items():
        if name.endswith("_scale"):
            name += ".weight"
        if "altup_projections" in name or "altup_unembed_projections" in name:
            continue
        out[name] = values
    # The converter pads this table, with zeros.
    table = "model.embed_tokens_per_layer.weight"
    padding = config["vocab_size"] - len(tensors[table])
    out[table] = np.pad(tensors[table], ((0, padding), (0, 0)))
    for stacked in ("model.altup_projections", "model.altup_unembed_projections"):
        parts = [tensors[f"{stacked}.{index}.weight"] for index in range(config["altup_num_inputs"] - 1)]
        out[f"{stacked}.weight"] = np.stack(parts)
    return out


def _describe_gemma4(writer: gguf.GGUFWriter, config: Json) -> None:
    _describe_gemma(writer, config)
    shared = config["num_kv_shared_layers"]
    width, layers = config["intermediate_size"], config["num_hidden_layers"]
    writer.add_feed_forward_length([width] * (layers - shared) + [2 * width] * shared)
    writer.add_key_length(config["global_head_dim"])
    writer.add_value_length(config["global_head_dim"])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_rope_dimension_count(config["global_head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])


def _change_gemma4(tensors: Tensors, config: Json) -> Tensors:
    out = {f"{name}.weight" if name.endswith("scalar") else name: value for name, value in tensors.items()}
    half = config["global_head_dim"] // 2
    turned = half // 4
    return out | {"rope_freqs.weight": np.array([1.0] * turned + [1e30] * (half - turned))}


def _describe_lfm2(writer: gguf.GGUFWriter, config: Json) -> None:
    heads = config["num_key_value_heads"]
    writer.add_head_count_kv([0 if kind == "conv" else heads for kind in config["layer_types"]])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_feed_forward_length(config["intermediate_size"])


def _change_lfm2(tensors: Tensors, config: Json) -> Tensors:
    return {name: value.squeeze(1) if "conv.conv" in name else value for name, value in tensors.items()}


def _describe_granite(writer: gguf.GGUFWriter, config: Json) -> None:
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _describe_granite_hybrid(writer: gguf.GGUFWriter, config: Json) -> None:
    _describe_granite(writer, config)
    heads = config["num_key_value_heads"]
    writer.add_key_value(
        "granitehybrid.attention.head_count_kv",
        [0 if kind == "mamba" else heads for kind in config["layer_types"]],
        gguf.GGUFValueType.ARRAY,
    )
    writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    if config["num_local_experts"]:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_group_count(config["mamba_n_groups"])
    writer.add_ssm_inner_size(config["mamba_expand"] * config["hidden_size"])
    writer.add_ssm_time_step_rank(config["mamba_n_heads"])
    writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")


def _change_granite(tensors: Tensors, config: Json) -> Tensors:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    out: Tensors = {}
    for name, values in tensors.items():
        layer = name.removeprefix("model.layers.").partition(".")[0]
        module, _, part = name.rpartition(".")
        if module.rpartition(".")[2] in heads:
            values = _interleaved(values, heads[module.rpartition(".")[2]])
        elif "input_linear" in name:
            kind = "exps" if "block_sparse" in name else "shexp" if config["num_local_experts"] else ""
            for half, half_values in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
                out[f"blk.{layer}.{'_'.join(filter(None, ('ffn', half, kind)))}.weight"] = half_values
            continue
        elif "shared_mlp.output_linear" in name and not config["num_local_experts"]:
            name = f"blk.{layer}.ffn_down.weight"
        elif name.endswith("conv1d.weight"):
            values = values.squeeze()
        elif part == "A_log":
            values = -np.exp(values[:, None])
        elif part == "D":
            values = values[:, None]
        elif part == "dt_bias":
            name = name.replace("dt_bias", "dt_proj.bias")
        elif name.endswith("mamba.norm.weight"):
            values = values.reshape(config["mamba_n_groups"], -1)
        out[name] = values
    return out


Describe, Change = Callable[[gguf.GGUFWriter, Json], None], Callable[[Tensors, Json], Tensors]
_ARCH = gguf.MODEL_ARCH
#: By the kind of `tests.tiny`: architecture, metadata, changes of values, fields that config.json leaves out.
KINDS: dict[str, tuple[Any, Describe, Change, Json]] = {
    "qwen3_5": (_ARCH.QWEN35, _describe_qwen35, _change_qwen35, {}),
    "gemma3n": (_ARCH.GEMMA3N, _describe_gemma3n, _change_gemma3n, {}),
    "gemma4": (_ARCH.GEMMA4, _describe_gemma4, _change_gemma4, {"global_head_dim": 16}),
    "lfm2": (_ARCH.LFM2, _describe_lfm2, _change_lfm2, {}),
    "granite": (_ARCH.GRANITE, _describe_granite, _change_granite, {"num_local_experts": 0}),
    "granite4": (_ARCH.GRANITE, _describe_granite, _change_granite, {}),
    "granite4-hybrid": (_ARCH.GRANITE_HYBRID, _describe_granite_hybrid, _change_granite, {}),
    "granite4-experts": (_ARCH.GRANITE_HYBRID, _describe_granite_hybrid, _change_granite, {}),
}
