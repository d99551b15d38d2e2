"""The metadata of a GGUF file that describe its model, each value checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from converters.gguf_file import GGUFFile, StringArray
from vt_core.errors import ModelError

_ABSENT = object()


class Hyperparameters:
    """The metadata of one architecture.

    Each getter raises ModelError for a value that is missing or of another kind.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture: str = file.metadata["general.architecture"]

    def fail(self, sentence: str) -> ModelError:
        return ModelError(f"{self.file.path}: {sentence}")

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def get(self, key: str, default: Any = _ABSENT) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if value is _ABSENT:
            raise self.fail(f"the metadata lack {name}, without which the model cannot be built.")
        if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
            return value[0].item()
        if isinstance(value, (np.ndarray, StringArray)):
            raise self.fail(f"{name} differs from layer to layer, which is not supported.")
        return value

    def count(self, key: str, default: Any = _ABSENT) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise self.fail(f"{self.architecture}.{key} is {value!r}, not a positive count.")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.fail(f"{self.architecture}.{key} is {value!r}, not a finite number.")
        return float(value)

    def counts(self, key: str) -> list[int]:
        """A count of each layer, which may be zero. Raises ModelError for other values."""
        return self._each(key, lambda value: isinstance(value, int) and 0 <= value < 1 << 31, "count")

    def numbers(self, key: str) -> list[float]:
        """A number of each layer, which may be infinite. Raises ModelError for other values."""
        return self._each(key, lambda value: isinstance(value, (int, float)) and value == value, "number")

    def flags(self, key: str) -> list[bool]:
        """Yes or no for each layer. Raises ModelError for other values, and for one value of all layers."""
        if not isinstance(self.file.metadata.get(f"{self.architecture}.{key}"), np.ndarray):
            raise self.fail(f"{self.architecture}.{key} is not a list with a value for each layer.")
        return [bool(flag) for flag in self._each(key, lambda value: value in (0, 1), "yes or no")]

    def _each(self, key: str, fits: Callable[[Any], bool], what: str) -> list[Any]:
        """The value of each layer: a list of the file, or one value that all layers share."""
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        values = value.tolist() if isinstance(value, np.ndarray) else [self.get(key)] * self.layers
        if len(values) < self.layers:
            raise self.fail(f"{self.architecture}.{key} has {len(values)} values for {self.layers} layers.")
        for item in values:
            if not fits(item):
                raise self.fail(f"{self.architecture}.{key} holds {item!r}, not a {what}.")
        return values[: self.layers]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the file. Raises ModelError where it is missing."""
        if tensor not in self.file.tensors:
            raise self.fail(f"it lacks the tensor {tensor}: the file is incomplete.")
        return self.file.tensors[tensor].shape

    def used_rows(self, tensor: str) -> int:
        """Rows of a matrix of the file before the rows of zeros at its end."""
        shape, piece = self.shape(tensor), 64
        if len(shape) != 2:
            raise self.fail(f"{tensor} has the shape {list(shape)}, which is not that of a table.")
        table, rows = self.file.tensors[tensor], shape[0]
        while rows > 0:
            start = max(0, rows - piece)
            used = np.flatnonzero(self.file.rows(table, start, rows - start).any(axis=1))
            if len(used):
                return start + int(used[-1]) + 1
            rows = start
        raise self.fail(f"{tensor} holds only zeros.")

    @property
    def layers(self) -> int:
        """Layers of the model, without those that only guess further tokens (`nextn`) after them.

        Raises:
            ModelError: there is none.
        """
        extra = self.count("nextn_predict_layers") if self.get("nextn_predict_layers", 0) else 0
        if extra >= self.count("block_count"):
            raise self.fail(f"all of its {extra} layers guess further tokens.")
        return self.count("block_count") - extra

    @property
    def head_dim(self) -> int:
        """Width of an attention head.

        Raises:
            ModelError: it is not one even number.
        """
        hidden, heads = self.count("embedding_length"), self.count("attention.head_count")
        if not self.has("attention.key_length") and hidden % heads:
            raise self.fail(f"the width {hidden} is not a multiple of the {heads} attention heads.")
        width = self.count("attention.key_length", hidden // heads)
        if self.count("attention.value_length", width) != width or width % 2:
            raise self.fail("keys and values of different or odd widths are not supported.")
        return width

    @property
    def window(self) -> int | None:
        """Width of the sliding window; None where the file has none, or 0."""
        return self.count("attention.sliding_window") if self.get("attention.sliding_window", 0) else None
