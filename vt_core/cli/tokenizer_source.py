"""Finds the tokenizer and the number of rows that `profile --model` refers to. It needs no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.errors import ConfigError, OptionError
from vt_core.files.json_files import read_object
from vt_core.files.model_config import text_config
from vt_core.files.model_dir import is_model_directory


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer, and what is known about its model."""

    tokenizer_json: Path
    #: Rows of the model's table, V; None if unknown.
    vocab_rows: int | None
    #: Name of the model.
    name: str


def find_tokenizer(
    model: str | Path | None,
    revision: str | None = None,
    vocab_rows: int | None = None,
    progress: bool = True,
) -> TokenizerSource:
    """Find the tokenizer of a model.

    Args:
        model: a `tokenizer.json`, a directory that contains one, or anything that can be converted. None: the
            default model.
        revision: branch, tag or commit of a hub id.
        vocab_rows: rows of the model's table, for a tokenizer without a model.
        progress: whether to show progress bars on stderr.

    Raises:
        OptionError: `vocab_rows` is given, but the model states its rows.
        ModelError: there is no such model.
    """
    path = None if model is None else Path(model).expanduser()
    if path is not None and path.is_file() and path.suffix == ".json":
        return TokenizerSource(path, vocab_rows, path.resolve().parent.name)
    if path is not None and not is_model_directory(path) and (path / "tokenizer.json").is_file():
        rows = _config_rows(path) if vocab_rows is None else vocab_rows
        return TokenizerSource(path / "tokenizer.json", rows, path.resolve().name)
    if vocab_rows is not None:
        raise OptionError("--vocab-rows is for a tokenizer without a model; this model states its rows.")
    from converters.cache import open_model

    directory = open_model(model, revision=revision, progress=progress)
    manifest = directory.manifest
    return TokenizerSource(directory.path / "tokenizer.json", manifest.vocab_rows, manifest.source.name)


def _config_rows(directory: Path) -> int | None:
    """`vocab_size` of a Hugging Face config; multimodal models keep it in their text model's part."""
    if not (directory / "config.json").is_file():
        return None
    config: dict[str, Any] = read_object(
        directory / "config.json", "model configuration", ConfigError, strict=False
    )
    for part in (config, text_config(config)):
        if isinstance(rows := part.get("vocab_size"), int) and rows > 0:
            return rows
    return None
