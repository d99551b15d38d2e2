"""Changes to a model that :func:`tests.tiny.write_model` wrote: another configuration, or other weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Tensors = dict[str, Any]
#: What ``config.json`` says instead (objects are merged), or an edit of the tensors, or both.
Change = dict | Callable[[Tensors], None] | tuple[dict, Callable[[Tensors], None]]
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "embeddings.weight")


def write_changed(source: Path, directory: Path, change: Change) -> Path:
    """Write a changed copy of a model to `directory`."""
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


def filled(value: float, *endings: str) -> Callable[[Tensors], None]:
    """Give the tensors with these endings of names one value."""

    def edit(tensors: Tensors) -> None:
        for tensor in _chosen(tensors, *endings):
            tensor.fill_(value)

    return edit


def _chosen(tensors: Tensors, *endings: str) -> list:
    chosen = [tensor for name, tensor in tensors.items() if name.endswith(endings)]
    assert chosen, endings
    return chosen


def averaged(*endings: str) -> Callable[[Tensors], None]:
    """Give the tensors with these endings of names their mean everywhere."""

    def edit(tensors: Tensors) -> None:
        for tensor in _chosen(tensors, *endings):
            tensor.fill_(tensor.mean())

    return edit


def head_is_the_embedding(tensors: Tensors) -> None:
    (head,), (embedding,) = _chosen(tensors, *_HEADS), _chosen(tensors, *_EMBEDDINGS)
    head.copy_(embedding)


def untie(tensors: Tensors) -> None:
    (embedding,) = _chosen(tensors, *_EMBEDDINGS)
    # Padding rows stay zero.
    tensors["lm_head.weight"] = embedding.roll(1, dims=1)


def unscale_embedding(tensors: Tensors) -> None:
    """Divide the embedding by the factor of Gemma, which is not a setting, and keep the head as it is."""
    (name,) = [name for name in tensors if name.endswith(_EMBEDDINGS)]
    embedding = tensors[name]
    tensors[name.replace("model.embed_tokens", "lm_head")] = embedding.clone()
    embedding /= math.sqrt(embedding.shape[1])
