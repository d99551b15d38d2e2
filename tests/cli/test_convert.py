"""``convert`` as a command, and paths of models. What it writes is tested in tests/converters."""

from __future__ import annotations

import os

import pytest

from tests.commands import error_of, json_of, run_cli

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def source(tiny):
    return tiny("llama")[0]


def test_size_goes_to_stderr_and_the_directory_runs(source, tmp_path):
    out = tmp_path / "out\x1b[31m"
    done = run_cli("torch", "convert", source, out)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1].startswith(f"{tmp_path}/out\\x1b[31m: llama, ")
    assert json_of(run_cli("torch", "inspect", out, "--json"))["model_type"] == "llama"


def test_group_size_goes_with_quantize(source, tmp_path):
    done = run_cli("torch", "convert", source, tmp_path / "out", "--group-size", 32)
    assert done.exit_code == 2 and "--group-size goes with --quantize" in done.stderr
    assert not (tmp_path / "out").exists()


def test_model_paths_that_are_not_utf8_are_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    link = tmp_path / NOT_UTF8
    link.symlink_to(source)
    cache = tmp_path / f"{NOT_UTF8}-cache"
    sentence = "caf\\udce9{}: the path of a model must be UTF-8"
    assert sentence.format("") in error_of(run_cli("torch", "convert", link, tmp_path / "out"))
    assert sentence.format("") in error_of(run_cli("torch", "generate", "--model", link, "hi"))
    assert sentence.format("-out") in error_of(
        run_cli("torch", "convert", source, tmp_path / f"{NOT_UTF8}-out")
    )
    monkeypatch.setenv("VT_CACHE", str(cache))
    assert "the path of a model must be UTF-8" in error_of(
        run_cli("torch", "generate", "--model", source, "hi")
    )
    assert list(tmp_path.iterdir()) == [link]
