"""config.json and generation_config.json of a GGUF file, from which the frameworks build its model."""

from __future__ import annotations

from typing import Any

from converters.gguf_families import FAMILIES
from converters.gguf_file import GGUFFile
from converters.gguf_metadata import Hyperparameters
from converters.gguf_rope import rope
from vt_core.errors import ModelError


def build_config(file: GGUFFile, vocab_size: int, tied: bool, dtype: str) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        ModelError: metadata are missing, or no known model has them.
    """
    hyper = Hyperparameters(file)
    family = FAMILIES[hyper.architecture]
    if hyper.get("expert_count", 0) and not family.experts:
        raise hyper.fail(f"models of the architecture {hyper.architecture!r} with experts are not supported.")
    extra = family.extra(hyper)
    shared: dict[str, Any] = {"tie_word_embeddings": tied, "torch_dtype": dtype, **token_ids(file)}
    config: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hyper.count("embedding_length"),
        "num_hidden_layers": hyper.layers,
        "num_attention_heads": hyper.count("attention.head_count"),
        "max_position_embeddings": hyper.count("context_length"),
        "rms_norm_eps": hyper.number("attention.layer_norm_rms_epsilon"),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "use_cache": True,
        **shared,
    }
    if "intermediate_size" not in extra:
        config["intermediate_size"] = hyper.count("feed_forward_length")
    if "num_key_value_heads" not in extra:
        config["num_key_value_heads"] = hyper.count("attention.head_count_kv", config["num_attention_heads"])
    config |= rope(hyper, family.rope_theta) if "rope_parameters" not in extra else {}
    config |= extra
    if family.wrapper is None:
        return config
    return {
        "architectures": [family.wrapper.model_class],
        "model_type": family.wrapper.model_type,
        "text_config": {key: value for key, value in config.items() if key != "architectures"},
        **shared,
    }


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
