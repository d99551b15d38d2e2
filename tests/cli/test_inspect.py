"""``inspect --measure``, which runs the model. On every backend."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from vt_core.cli import build

pytestmark = pytest.mark.parametrize("backend", backend_params())


def test_measure_says_how_fast_and_when_exact_decoding_pays(backend, tiny):
    arguments = ["inspect", str(tiny("llama")[1]), "--measure"]
    report = json.loads(CliRunner().invoke(build(backend), [*arguments, "--json"]).stdout)
    assert report["step_s"] > 0 and report["full_step_s"] > 0
    assert 0 < report["verify_one_s"] <= report["verify_block_s"]
    assert 0 <= report["break_even_miss_rate"] <= 1
    lines = dict(
        line.split("  ", 1) for line in CliRunner().invoke(build(backend), arguments).stdout.splitlines()
    )
    assert "tokens/s" in lines["full head"]
    assert "ms for 32" in lines["verification"].replace("  ", " ")
    assert lines["exact decoding"].strip().startswith(("faster", "slower"))


def test_measure_is_for_models(backend, tmp_path):
    file = tmp_path / "math.vt.json"
    file.write_text("{}")
    done = CliRunner().invoke(build(backend), ["inspect", str(file), "--measure"])
    assert done.exit_code == 2 and "--measure is for model directories" in done.stderr


def test_measuring_quantized_weights(backend, tiny):
    model = str(tiny("llama")[1])
    done = CliRunner().invoke(build(backend), ["inspect", model, "--quantize", "int8"])
    assert done.exit_code == 2 and "--quantize goes with --measure" in done.stderr
    done = CliRunner().invoke(build(backend), ["inspect", model, "--measure", "--quantize", "int8", "--json"])
    if backend == "mlx":
        assert done.exit_code == 2 and "vt-mlx convert --quantize 8" in done.stderr
    else:
        assert json.loads(done.stdout)["step_s"] > 0
