"""The script for machines with a GPU: it goes on after a failure, and a tiny model runs through it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks import device
from benchmarks.device import Report, apart, compare
from tests.conftest import backend_params
from vt_core.errors import BackendError
from vt_core.measure.variants import parse_variants


def a_report(out, seconds=60.0):
    return Report(out, time.monotonic() + seconds, {"parts": []})


def test_failed_part_is_noted_and_the_next_runs(tmp_path):
    report = a_report(tmp_path / "out.json")
    assert report.part("first", lambda: 1 / 0) is None
    assert report.part("second", lambda: 7) == 7
    assert report.failed == ["first"]
    first, second = json.loads(report.out.read_text())["parts"]
    assert first["error"] == "ZeroDivisionError: division by zero" and second["error"] is None


def test_parts_after_the_time_is_up_do_not_run(tmp_path):
    report = a_report(tmp_path / "out.json", seconds=0)
    assert report.part("late", lambda: pytest.fail("it ran")) is None
    assert report.results["parts"][0]["error"] == "there was no time left for it"


def _ends():
    import os

    os._exit(3)


def _sleeps():
    time.sleep(60)


def test_process_that_ends_or_hangs_is_an_error(tmp_path):
    with pytest.raises(BackendError, match="ended with code 3"):
        apart(a_report(tmp_path / "out.json"), _ends)
    with pytest.raises(TimeoutError):
        apart(a_report(tmp_path / "out.json", seconds=1), _sleeps)


def test_texts_are_compared_with_the_full_heads():
    reference = {"greedy": [[1, 2, 3], [4, 5]], "sampled": [[6]]}
    found = compare({"greedy": [[1, 2, 9], [4, 5]], "sampled": []}, reference)
    assert found["greedy"] == {"texts": 2, "same": 1, "different": [{"prompt": 0, "position": 2}]}
    assert found["sampled"]["texts"] == 0


def test_compiled_decoding_is_measured_with_pytorch_only():
    assert device.variants("torch")[0].name == "full"
    assert device.variants("torch")[-1] == replace(device.variants("mlx")[3], name="compiled")


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params())
def test_tiny_model_is_measured(backend, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device, "variants", lambda backend: parse_variants("full,prealloc"))
    out = tmp_path / "out.json"
    arguments = ["--backend", backend, "--model", str(tiny("llama")[1]), "--device", "cpu", "--out", str(out)]
    done = CliRunner().invoke(device.main, [*arguments, "--dtype", "float32", "--quick", "--no-tests"])
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())
    assert results["device"]["name"] and all(part["error"] is None for part in results["parts"])
    (model,) = results["models"]
    full, exact = model["variants"]
    assert full["same_ids"] is None
    assert exact["same_ids"]["greedy"]["same"] == exact["same_ids"]["sampled"]["same"] == 2
    assert exact["memory"]["peak_bytes"] > 0 and exact["tpot_s"] > 0
    assert {
        int(count): each["beyond"] for count, each in model["rounding"]["tiles"].items()
    } == dict.fromkeys((1, 4, 16), 0)
    assert model["rounding"]["again"]["equal"] == model["rounding"]["again"]["logits"]
