from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from converters import convert
from tests.converters import tiny
from vt_core.cli import build
from vt_core.cli.inspect import size_text
from vt_core.vocab.task import TaskVocabulary


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build("torch"), ["inspect", *map(str, arguments)], prog_name="vt-torch")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = tiny.write_model(tmp_path / "Tiny-1M", tiny.llama(tied=False), tie_word_embeddings=False)
    return convert(source, tmp_path / "out", progress=False)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "math.vt.json"
    ids = np.array([1, 5, 9])
    TaskVocabulary("math", "d0", 40, ids, np.array([2, 1, 0]), examples=3, stages={"counted": 7}).save(path)
    return path


def test_model_in_words(model: Path) -> None:
    result = run(model)
    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == [
        "model",
        "vocabulary",
        "tables",
        "rest",
        "on disk",
        "tokenizer",
        "with a head",
    ]
    assert "llama, from Tiny-1M (huggingface)" in result.stdout
    assert "40 rows of 24 bfloat16, separate embedding and head" in result.stdout
    assert "3.84 kB, 66% of the model" in result.stdout


def test_model_as_json(model: Path) -> None:
    report = json.loads(run(model, "--json").stdout)
    body = (model / "model.safetensors").stat().st_size
    assert report["table_bytes"] == 2 * 40 * 24 * 2 == report["example_table_bytes"]
    assert report["body_bytes"] == body
    assert report["table_share"] == pytest.approx(3840 / (3840 + body))
    assert (report["kind"], report["vocab_rows"], report["tied"]) == ("model", 40, False)
    assert report["example_saved_bytes"] == 0
    assert "verified" not in report


def test_a_table_for_the_layers_is_named(tmp_path: Path) -> None:
    source = tiny.write_model(tmp_path / "in", tiny.with_per_layer(), **tiny.PER_LAYER)
    out = convert(source, tmp_path / "out", progress=False)
    assert "of the layers  30 rows of their own, 960 B of these tables" in run(out).stdout
    report = json.loads(run(out, "--json").stdout)
    assert (report["per_layer_rows"], report["per_layer_bytes"]) == (30, 30 * 16 * 2)
    assert report["table_bytes"] == 40 * 24 * 2 + 960
    assert report["example_table_bytes"] == 40 * 24 * 2


def test_verify(model: Path) -> None:
    assert json.loads(run(model, "--json", "--verify").stdout)["verified"] is True
    file = model / "vocab.lmdb" / "data.mdb"
    content = bytearray(file.read_bytes())
    content[content.index(tiny.llama()["model.embed_tokens.weight"][3].tobytes())] ^= 1
    file.write_bytes(content)
    assert run(model).exit_code == 0
    result = run(model, "--verify")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "data.mdb has changed since the conversion" in result.stderr


def test_task(task: Path) -> None:
    result = run(task)
    assert result.exit_code == 0
    assert "3 of 40 (7.5%)" in result.stdout and "after counted" in result.stdout
    report = json.loads(run(task, "--json").stdout)
    assert (report["kind"], report["name"], report["rows"], report["row_share"]) == ("task", "math", 3, 0.075)


def test_verify_is_not_for_tasks(task: Path) -> None:
    result = run(task, "--verify")
    assert result.exit_code == 2 and "--verify is for model directories" in result.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "none does not exist."),
        ("Tiny-1M", "is not a model directory of vt: it has no vt.json,"),
        ("x.gguf", "x.gguf is a GGUF file, no model directory."),
        ("x.json", "x.json"),
    ],
)
def test_foreign_path_is_one_line(model: Path, name: str, sentence: str) -> None:
    (model.parent / "x.gguf").write_bytes(b"GGUF")
    (model.parent / "x.json").write_bytes(b"\xff")
    result = run(model.parent / name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("vt-torch: ") and result.stderr.count("\n") == 1
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (335_544_320, "336 MB"),
        (999_600, "1 MB"),
        (1_270_000_000, "1.27 GB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


def test_sizes_beyond_the_last_unit() -> None:
    assert size_text(12_345_000_000_000) == "12345 GB"
