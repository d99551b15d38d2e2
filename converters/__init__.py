"""From a Hugging Face directory, hub id or GGUF file to a model directory. Needs neither torch nor MLX."""

from __future__ import annotations

from converters.cache import resolve
from converters.convert import convert

__all__ = ["convert", "resolve"]
