"""``inspect``: reports, verification, and ``--measure``, which runs the model on every backend."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from converters import convert
from tests.commands import error_of, json_of, run_cli
from tests.conftest import backend_params
from tests.converters import tiny as made
from vt_core.cli.inspect import size_text
from vt_core.vocab.ngrams import NgramTable, make_section
from vt_core.vocab.task import TaskVocabulary


def run(*arguments: object) -> Result:
    return run_cli("torch", "inspect", *arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = made.write_model(tmp_path / "Tiny-1M", made.llama(tied=False), tie_word_embeddings=False)
    return convert(source, tmp_path / "out", progress=False)


def write_task(path: Path, name: str = "math") -> Path:
    ids, counts = np.array([1, 5, 9]), np.array([2, 1, 0])
    TaskVocabulary(name, "d0", 40, ids, counts, examples=3, stages={"counted": 7}).save(path)
    return path


def test_model_report(model: Path) -> None:
    result = run(model)
    assert result.exit_code == 0
    names = ["model", "vocabulary", "tables", "rest", "on disk", "tokenizer", "with a head"]
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == names
    assert "llama, from Tiny-1M (huggingface)" in result.stdout
    assert "40 rows of 24 bfloat16, separate embedding and head" in result.stdout
    assert "3.84 kB, 66% of the model" in result.stdout


def test_model_report_as_json(model: Path) -> None:
    report = json_of(run(model, "--json"))
    body = (model / "model.safetensors").stat().st_size
    assert report["table_bytes"] == 2 * 40 * 24 * 2 == report["example_table_bytes"]
    assert report["body_bytes"] == body
    assert report["table_share"] == pytest.approx(3840 / (3840 + body))
    assert (report["kind"], report["vocab_rows"], report["tied"]) == ("model", 40, False)
    assert report["example_saved_bytes"] == 0
    assert "verified" not in report


def test_per_layer_table_is_reported(tmp_path: Path) -> None:
    source = made.write_model(tmp_path / "in", made.with_per_layer(), **made.PER_LAYER)
    out = convert(source, tmp_path / "out", progress=False)
    assert "per layer    30 rows of their own table, 960 B of these tables" in run(out).stdout
    report = json_of(run(out, "--json"))
    assert (report["per_layer_rows"], report["per_layer_bytes"]) == (30, 30 * 16 * 2)
    assert report["table_bytes"] == 40 * 24 * 2 + 960
    assert report["example_table_bytes"] == 40 * 24 * 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            {"kind": "gguf", "name": "tiny.gguf"},
            "whether tiny.gguf was whole when it was converted: GGUF files",
        ),
        ({"name": "Tiny-1M"}, "whether Tiny-1M was whole when it was converted: plain directories"),
        ({"name": "owner/tiny", "fingerprint": "a" * 40}, None),
        ({"kind": "random", "name": "qwen"}, None),
    ],
)
def test_verify_says_what_has_no_digest(model: Path, source: dict[str, str], words: str | None) -> None:
    manifest = json.loads((model / "vt.json").read_text())
    manifest["source"] |= source
    (model / "vt.json").write_text(json.dumps(manifest))
    report = json_of(run(model, "--json", "--verify"))
    assert report.get("unchecked") == (words and f"{words} have no digests")
    assert ("unchecked    whether" in run(model, "--verify").stdout) == (words is not None)
    assert "unchecked" not in json_of(run(model, "--json"))


def test_verify_accepts_what_was_converted(model: Path) -> None:
    assert json_of(run(model, "--json", "--verify"))["verified"] is True
    assert "verified" in run(model, "--verify").stdout


@pytest.mark.parametrize(
    "name", ["vocab.lmdb/data.mdb", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_verify_finds_a_changed_byte_in_any_file(model: Path, name: str) -> None:
    file = model / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    line = error_of(run(model, "--verify"))
    assert str(file) in line and "Convert the model again" in line


def test_verify_says_what_it_cannot_check(model: Path, tmp_path: Path) -> None:
    assert "no digests that its files could be checked against" in error_of(
        run(tmp_path / "Tiny-1M", "--verify")
    )
    result = run(write_task(tmp_path / "math.vt.json"), "--verify")
    assert result.exit_code == 2 and "--verify is for model directories" in result.stderr


def test_task_report(tmp_path: Path) -> None:
    task = write_task(tmp_path / "math.vt.json")
    result = run(task)
    assert result.exit_code == 0
    assert "3 of 40 (7.5%)" in result.stdout and "after counted" in result.stdout
    report = json_of(run(task, "--json"))
    assert (report["kind"], report["name"], report["rows"], report["row_share"]) == ("task", "math", 3, 0.075)


def write_table(path: Path, text: str = "b") -> Path:
    ones, many = np.array([1]), np.array([3])
    sections = (make_section(np.array([7], np.uint64), ones, ones, many),) * 2
    samples = ({"context": "", "next": "S", "count": 9, "share": 1.0},
               {"context": text, "next": "", "count": 1234, "share": 0.25})  # fmt: skip
    NgramTable("d0", sections, "math", "gemma", 20, 5, samples).save(path)
    return path


def test_ngrams_report(tmp_path: Path) -> None:
    path = write_table(tmp_path / "math.ngrams")
    assert run(path).stdout.splitlines() == [
        "n-grams of      math",
        "entries         2, 32 B",
        "after 1 token   1",
        "after 2 tokens  1",
        "counted         in 20 outputs, at least 5 times each",
        "at the start    'S', 9 times, 100%",
        "after 'b'       the end, 1,234 times, 25%",
        "tokenizer       d0",
    ]
    report = json_of(run(path, "--json"))
    assert (report["kind"], report["entries"], report["bytes"]) == ("ngrams", [1, 1], 32)
    assert "not an n-gram table" in error_of(run(write_task(tmp_path / "x.ngrams")))
    assert "\x1b" not in run(write_table(tmp_path / "y.ngrams", "\x1b[31m\nx")).stdout


def test_control_characters_of_files_are_escaped(tmp_path: Path) -> None:
    task = write_task(tmp_path / "x.vt.json", name="\x1b]0;title\x07\u202e\x9b")
    result = run(task)
    assert "task           \\x1b]0;title\\x07\\u202e\\x9b\n" in result.stdout
    assert json_of(run(task, "--json"))["name"] == "\x1b]0;title\x07\u202e\x9b"


@pytest.mark.parametrize(
    "arguments", [["inspect", "\x1b[31m"], ["inspect", "--\x1b[31m"], ["inspect", "a", "\x1b[31m"]]
)
def test_control_characters_of_arguments_are_escaped(arguments: list[str]) -> None:
    result = run_cli("torch", *arguments)
    assert result.exit_code == 2
    assert "\\x1b[31m" in result.stderr and "\x1b" not in result.stderr


def test_file_names_need_not_be_utf8(model: Path, tmp_path: Path) -> None:
    renamed = model.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    assert json_of(run(renamed, "--json"))["path"] == str(renamed)
    renamed.rename(tmp_path / "moved")
    assert "caf\\udce9 does not exist" in error_of(run(renamed))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "none does not exist"),
        ("Tiny-1M", "is not a model directory of vt"),
        ("x.gguf", "x.gguf is a GGUF file, not a model directory."),
        ("x.json", "x.json"),
    ],
)
def test_foreign_path_is_one_line(model: Path, name: str, sentence: str) -> None:
    (model.parent / "x.gguf").write_bytes(b"GGUF")
    (model.parent / "x.json").write_bytes(b"\xff")
    line = error_of(run(model.parent / name))
    assert line.startswith("vt-torch: ") and sentence in line


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (335_544_320, "336 MB"),
        (999_600, "1 MB"),
        (1_270_000_000, "1.27 GB"),
        (12_345_000_000_000, "12345 GB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("backend", backend_params())
def test_measure_reports_speed_and_break_even_miss_rate(backend, tiny):
    arguments = ("inspect", tiny("llama")[1], "--measure")
    report = json_of(run_cli(backend, *arguments, "--json"))
    assert report["step_s"] > 0 and report["full_step_s"] > 0
    assert 0 < report["verify_one_s"] <= report["verify_block_s"]
    assert 0 <= report["break_even_miss_rate"] <= 1
    lines = dict(line.split("  ", 1) for line in run_cli(backend, *arguments).stdout.splitlines())
    assert "tokens/s" in lines["full head"]
    assert "ms for 32" in lines["verification"]
    assert lines["exact decoding"].strip().startswith(("faster", "slower"))
