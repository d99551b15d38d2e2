"""A GGUF file as a source of a conversion."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converters import gguf_tensors, gguf_tokenizer
from converters.gguf_config import build_config, build_generation_config
from converters.gguf_file import GGUFFile, StringArray
from converters.gguf_layouts import HEAD, Layout
from converters.gguf_metadata import Hyperparameters
from converters.gguf_plans import Plan
from converters.source import TensorInfo, utf8
from converters.tokenizer_json import digest
from vt_core.errors import ModelError
from vt_core.files.model_config import text_config

_STORED_AS = {"F32": "float32", "F16": "float16"}


class GGUFSource:
    """Reads one GGUF file: `config`, tensors in Hugging Face names and conventions, tokenizer.

    Opening checks the whole header and reads no weights.

    Raises:
        ModelError: the file is damaged or split, or its model is not supported.
    """

    kind = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = GGUFFile(path)
        self.name = utf8(self.file.path.name)
        layout = gguf_tensors.layout_of(self.file)
        _check_whole(self.file)
        hyper = Hyperparameters(self.file)
        self._plans = gguf_tensors.plan_tensors(self.file, layout, hyper)
        embedding = self._plans[layout.embedding].tensor
        self.default_dtype = _STORED_AS.get(embedding.type_name, "bfloat16")
        tied = HEAD not in self._plans
        self.config: dict[str, Any] = build_config(self.file, embedding.shape[0], tied, self.default_dtype)
        self.generation_config: dict[str, Any] | None = build_generation_config(self.file)
        _check_shapes(self.file, layout, self._plans, text_config(self.config))

    def fingerprint(self) -> str:
        """sha256 (hex) over the file's size, time of change and header: independent of where it lies."""
        digest = hashlib.sha256(f"{self.file.size} {self.file.mtime_ns} ".encode())
        digest.update(self.file.header())
        return digest.hexdigest()

    def tensors(self) -> list[TensorInfo]:
        """Every tensor, in the order of the file, as it is given out by default."""
        return [TensorInfo(plan.name, self.default_dtype, plan.shape) for plan in self._plans.values()]

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        """The rows of the tensor `name`, in order, as the storage dtype `dtype`.

        Raises:
            ModelError: the file is truncated, or a value is not finite in `dtype`.
        """
        return gguf_tensors.read_chunks(self.file, self._plans[name], dtype)

    def write_tokenizer(self, out: Path) -> str:
        """Write tokenizer.json, tokenizer_config.json and the chat template, where there is one, into `out`.

        Returns the digest of the tokenizer.

        Raises:
            TokenizerError: the vocabulary cannot be used.
        """
        gguf_tokenizer.write_tokenizer(self.file, out)
        return digest(out / "tokenizer.json")


def _check_whole(file: GGUFFile) -> None:
    parts = file.metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts != 1:
        raise ModelError(
            f"{file.path} is one of {parts} parts of a model; merge them (llama-gguf-split --merge)."
        )


def _check_shapes(file: GGUFFile, layout: Layout, plans: dict[str, Plan], config: dict[str, Any]) -> None:
    hidden, rows = config["hidden_size"], config["vocab_size"]
    table = (rows, hidden)
    wanted = {layout.embedding: table, HEAD: table, layout.last_norm: (hidden,)}
    for name, shape in wanted.items():
        tensor = plans[name].tensor if name in plans else None
        if tensor is not None and tensor.shape != shape:
            raise ModelError(
                f"{file.path}: {tensor.name} has the shape {list(tensor.shape)}, not {list(shape)}."
            )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, StringArray) and len(tokens) > rows:
        raise ModelError(f"{file.path} has {len(tokens)} tokens but only {rows} embedding rows.")
