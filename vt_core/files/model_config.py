"""What a conversion and a run need from a model's configuration, the content of its config.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from vt_core.files.quantization import Quantization

#: Names of the context's length; the last two are GPT-2's.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")
#: Kinds of scaling whose factor multiplies the length that the model was trained for.
_SCALINGS = ("linear", "dynamic", "yarn", "llama3", "longrope")
#: Models whose configuration gives the scaled length, together with a factor.
_SCALED_ALREADY = "gemma3"
#: No real factor comes near this.
_MAX_FACTOR = 1e6
#: Rows of the per-layer table if the configuration names none; the default of transformers and mlx-lm.
_PER_LAYER_ROWS = 262_144


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the language model: `text_config` of a multimodal model, else all of it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def context(config: dict[str, Any]) -> int | None:
    """Tokens that fit the model's context, or None if the configuration does not say.

    Scaled positions (YaRN and others) enlarge it: the factor multiplies the length before scaling.
    """
    for part in (config, text_config(config)):
        for name in _CONTEXT_NAMES:
            if _is_count(part.get(name)):
                return _scaled(part, part[name])
    return None


def per_layer_shape(config: dict[str, Any], how: Quantization | None = None) -> tuple[int, int] | None:
    """Shape of the table in which each layer looks up every token (Gemma 3n, Gemma 4); None without one.

    Args:
        how: how the table is packed. Columns are then words of packed values.

    Raises:
        ModelError: rows of this width cannot be packed so.
    """
    text = text_config(config)
    layers, width = text.get("num_hidden_layers"), text.get("hidden_size_per_layer_input")
    if not isinstance(layers, int) or not isinstance(width, int) or layers < 1 or width < 1:
        return None
    rows = text.get("vocab_size_per_layer_input")
    columns = layers * width if how is None else how.stored_columns(layers * width)
    return rows if isinstance(rows, int) else _PER_LAYER_ROWS, columns


def _scaled(config: Mapping[str, Any], length: int) -> int:
    """The context of positions that `length` describes before scaling, or after it."""
    if str(config.get("model_type")).startswith(_SCALED_ALREADY):
        return length
    longest = length
    for scaling in _scalings(config):
        factor = scaling.get("factor")
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in _SCALINGS or not _is_factor(factor):
            continue
        names = "original_max_position_embeddings"
        original = scaling.get(names, config.get(names))
        longest = max(longest, int((original if _is_count(original) else length) * factor))
    return longest


def _scalings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The descriptions of scaled positions, one for the model or one for each kind of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if isinstance(value, Mapping):
            yield value
            yield from (part for part in value.values() if isinstance(part, Mapping))


def _is_factor(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value) and value < _MAX_FACTOR


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
