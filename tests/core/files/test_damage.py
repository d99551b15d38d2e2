"""Damaged files of a model directory and of a source give one short error, never a traceback or a hang."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from converters import convert
from tests.converters import tiny
from tests.manifests import update_manifest
from vt_core.errors import VtError
from vt_core.files.model_dir import ModelDirectory

SOURCE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
CHANGES_PER_FILE = 25


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    return convert(source, source.with_name("out"), progress=False)


def damage(content: bytes, generator: random.Random) -> bytes:
    """Flip a bit, cut the end off, or write garbage over a part."""
    changed = bytearray(content)
    at = generator.randrange(len(changed))
    kind = generator.choice(["bit", "bit", "bit", "cut", "garbage"])
    if kind == "cut":
        return bytes(changed[:at])
    if kind == "bit":
        changed[at] ^= 1 << generator.randrange(8)
    else:
        length = min(generator.choice([1, 4, 50]), len(changed) - at)
        changed[at : at + length] = generator.randbytes(length)
    return bytes(changed)


def check(action: Callable[[], object], where: Path) -> bool:
    """Run an action that may raise a VtError with one short line. Returns whether it did."""
    try:
        action()
    except VtError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 600 + 3 * len(str(where)), text
        return True
    return False


def use(directory: Path) -> None:
    """Read everything of a model directory that is read without a framework."""
    opened = ModelDirectory.open(directory)
    assert opened.generation_config is not None
    assert opened.context is None or opened.context > 0
    with opened.open_store() as store:
        for table in store.tables.values():
            table.read(np.arange(table.spec.rows))


def test_verify_finds_every_damage(converted: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(converted, tmp_path / "model"))
    generator = random.Random(1)
    for name in ModelDirectory.open(converted).manifest.files:
        content = (directory / name).read_bytes()
        for _ in range(5):
            changed = damage(content, generator)
            (directory / name).unlink()
            (directory / name).write_bytes(changed)
            assert changed == content or check(lambda: ModelDirectory.open(directory).verify(), directory), (
                name
            )
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("name", ["vt.json", "config.json", "generation_config.json", "vocab.lmdb/data.mdb"])
def test_damaged_model_directories_are_read_or_refused(converted: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(converted, tmp_path / "model"))
    content = (directory / name).read_bytes()
    generator = random.Random(2)
    for _ in range(CHANGES_PER_FILE):
        (directory / name).unlink()
        (directory / name).write_bytes(damage(content, generator))
        if name != "vt.json":  # as if the damage had been there when the directory was written
            update_manifest(directory)
        check(lambda: use(directory), directory)


@pytest.mark.parametrize("name", SOURCE_FILES)
def test_damaged_sources_are_converted_or_refused(source: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "source"))
    content = (directory / name).read_bytes()
    generator = random.Random(3)
    for number in range(CHANGES_PER_FILE):
        (directory / name).write_bytes(damage(content, generator))
        out = tmp_path / f"out{number}"
        refused = check(partial(convert, directory, out, progress=False), directory)
        assert refused != out.exists()
        shutil.rmtree(out, ignore_errors=True)


HOSTILE = {
    "deep": "[" * 100_000,
    "deep value": '{"model_type": ' + "[" * 5_000 + "]" * 5_000 + "}",
    "list": "[]",
    "long list": json.dumps(list(range(100_000))),
    "long digits": '{"vocab_size": ' + "9" * 5_000 + "}",
    "many fields": json.dumps({f"num_hidden_layers{i}": "x" * 100 for i in range(3_000)}),
    "terminal escape": '{"model_type": "\\u001b[31m", "vocab_size": "\\u001b[2J"}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_hostile_json_is_one_short_line(source: Path, tmp_path: Path, name: str, text: str) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "source"))
    (directory / name).write_text(text)
    limit = sys.getrecursionlimit()
    refused = check(lambda: convert(directory, tmp_path / "out", progress=False), directory)
    assert sys.getrecursionlimit() == limit
    assert refused or name == "generation_config.json"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**9},
        {"vocab_size": -1},
        {"hidden_size": 10**12},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"quantization": {"bits": 10**9, "group_size": 64}},
        {"tie_word_embeddings": "x" * 300_000},
        {"model_type": ["llama"] * 100_000},
    ],
)
def test_impossible_values_in_a_source_are_refused(
    source: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "source"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    assert check(lambda: use(convert(directory, tmp_path / "out", progress=False)), directory)
