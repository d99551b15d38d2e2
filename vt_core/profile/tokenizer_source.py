"""Which tokenizer and how many rows a `--model` means; profiling needs no more of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.errors import ConfigError, OptionError
from vt_core.files.json_files import read_object
from vt_core.files.model_config import text_config
from vt_core.files.model_dir import ModelDirectory, is_model_directory


@dataclass(frozen=True)
class TokenizerSource:
    tokenizer_json: Path
    vocab_rows: int | None
    """V; None where nothing says it."""
    name: str


def find_tokenizer(
    model: str | Path | None,
    revision: str | None = None,
    vocab_rows: int | None = None,
    progress: bool = True,
) -> TokenizerSource:
    """The tokenizer of a `tokenizer.json`, of a directory with one, or of whatever a conversion takes.

    `vocab_rows` is V for a tokenizer without a model. Raises OptionError where the model says it too, and
    ModelError where there is no model.
    """
    path = None if model is None else Path(model).expanduser()
    if path is not None and path.is_file() and path.suffix == ".json":
        return TokenizerSource(path, vocab_rows, path.resolve().parent.name)
    if path is not None and not is_model_directory(path) and (path / "tokenizer.json").is_file():
        rows = _config_rows(path) if vocab_rows is None else vocab_rows
        return TokenizerSource(path / "tokenizer.json", rows, path.resolve().name)
    if vocab_rows is not None:
        raise OptionError(
            "--vocab-rows goes with a tokenizer alone; a model says itself how many rows it has."
        )
    from converters.cache import resolve

    directory = ModelDirectory.open(resolve(model, revision=revision, progress=progress))
    manifest = directory.manifest
    return TokenizerSource(directory.path / "tokenizer.json", manifest.vocab_rows, manifest.source.name)


def _config_rows(directory: Path) -> int | None:
    """`vocab_size` of a Hugging Face config; models of text and images hold it one level lower."""
    if not (directory / "config.json").is_file():
        return None
    config: dict[str, Any] = read_object(
        directory / "config.json", "model configuration", ConfigError, strict=False
    )
    for part in (config, text_config(config)):
        if isinstance(rows := part.get("vocab_size"), int) and rows > 0:
            return rows
    return None
