"""config.json of a model directory: that of the source, with the defaults of each framework written out."""

from __future__ import annotations

import copy
from typing import Any

from vt_core.files.architectures import architecture_of
from vt_core.files.model_config import text_config


def written_config(config: dict[str, Any], *, tied: bool, dtype: str | None) -> dict[str, Any]:
    """A copy of a source's configuration that both frameworks read alike.

    `dtype`: the storage dtype of all floats, where the conversion chose one. What changes: whether embedding
    and head are tied is said, as is `dtype`; rotary parameters, which transformers 5 nests, also stand where
    mlx-lm looks; mlx-lm's quantization is said once.
    """
    written = copy.deepcopy(config)
    if written.get("quantization") or not written.get("quantization_config"):
        # mlx-lm says it twice, and transformers takes this one for a method of its own, an empty one too.
        written.pop("quantization_config", None)
    parts = [written] if text_config(written) is written else [written, text_config(written)]
    for part in parts:
        part["tie_word_embeddings"] = tied
        _flatten_rope(part)
        if dtype is not None:
            for key in {"dtype", "torch_dtype"} & part.keys():
                part[key] = dtype
    if dtype is not None and "dtype" not in written and "torch_dtype" not in written:
        written["dtype"] = dtype
    return written


def _flatten_rope(config: dict[str, Any]) -> None:
    """Write `rope_parameters` also as the older `rope_theta` and `rope_scaling`: mlx-lm's llama and qwen2
    read no other.

    Gemma 3 has one set for its global layers and one for its sliding ones, whose base has a name of its own.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if architecture_of(config).local_rope:
        _set_missing(config, "rope_local_base_freq", _part(rope, "sliding_attention").get("rope_theta"))
        rope = _part(rope, "full_attention")
    _set_missing(config, "rope_theta", rope.get("rope_theta"))
    _set_missing(config, "partial_rotary_factor", rope.get("partial_rotary_factor"))
    if rope.get("rope_type", "default") != "default":
        _set_missing(config, "rope_scaling", rope)


def _part(rope: dict[str, Any], name: str) -> dict[str, Any]:
    part = rope.get(name)
    return part if isinstance(part, dict) else {}


def _set_missing(config: dict[str, Any], key: str, value: Any) -> None:
    if value is not None and config.get(key) is None:
        config[key] = value
