from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.core.profile.small_tokenizers import byte_level, write
from vt_core.cli.tokenizer_source import find_tokenizer
from vt_core.errors import ModelError


def test_tokenizer_file_without_model(tmp_path: Path) -> None:
    path = write(tmp_path / "qwen", byte_level())
    found = find_tokenizer(path)
    assert (found.tokenizer_json, found.vocab_rows, found.name) == (path, None, "qwen")
    assert find_tokenizer(path, vocab_rows=300).vocab_rows == 300


@pytest.mark.parametrize(
    ("config", "rows"),
    [(None, None), ({}, None), ({"vocab_size": 320}, 320), ({"text_config": {"vocab_size": 320}}, 320)],
)
def test_rows_come_from_the_config(tmp_path: Path, config: dict | None, rows: int | None) -> None:
    write(tmp_path, byte_level())
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_tokenizer(tmp_path).vocab_rows == rows
    assert find_tokenizer(tmp_path, vocab_rows=999).vocab_rows == 999


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        find_tokenizer(tmp_path / "absent" / "model" / "x")
