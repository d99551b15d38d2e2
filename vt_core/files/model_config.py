"""What a model's configuration, the content of its config.json, says that a conversion and a run need."""

from __future__ import annotations

from typing import Any

from vt_core.files.quantization import Quantization

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")  # the last two in files of GPT-2
_PER_LAYER_ROWS = 262_144  # what transformers and mlx-lm take where a configuration does not say


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the language model: `text_config` of a model that also sees or hears, else all
    of it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def context(config: dict[str, Any]) -> int | None:
    """Tokens that fit the model's context, where its configuration says so."""
    for part in (config, text_config(config)):
        for name in _CONTEXT_NAMES:
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def per_layer_shape(config: dict[str, Any], how: Quantization | None = None) -> tuple[int, int] | None:
    """Rows and columns of the table in which the layers look every token up (Gemma 3n, Gemma 4), in words
    where it is packed; None where a model has none.

    Raises ModelError for rows that cannot be packed so.
    """
    text = text_config(config)
    layers, width = text.get("num_hidden_layers"), text.get("hidden_size_per_layer_input")
    if not isinstance(layers, int) or not isinstance(width, int) or layers < 1 or width < 1:
        return None
    rows = text.get("vocab_size_per_layer_input")
    columns = layers * width if how is None else how.columns(layers * width)
    return rows if isinstance(rows, int) else _PER_LAYER_ROWS, columns
