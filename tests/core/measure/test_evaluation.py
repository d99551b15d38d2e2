"""Settings that decide whether answers of an earlier run are reused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.evaluation import Evaluation, text_settings
from vt_core.measure.variants import parse_eval_variants
from vt_core.profile import make_row_format

ABOUT = {"device": "cpu", "dtype": "float32", "load_s": 1.0}


@pytest.fixture
def plan(tiny, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "a", "output": "1"}\n')
    return Evaluation(
        backend="torch",
        directory=ModelDirectory.open(tiny("llama")[1]),
        preset="math",
        layout=make_row_format("math", None, None, None),
        data=[data],
        variants=parse_eval_variants("original,exact", can_prune=False),
        out=tmp_path / "out",
        seed=0,
        minimum=20,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "mlx"},
        {"quantize": "int8"},
        {"max_tokens": 7},
        {"stop": ["\n"]},
        {"raw": True},
        {"system": "Be brief."},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_that_change_a_text_count(plan, change):
    assert text_settings(replace(plan, **change), ABOUT) != text_settings(plan, ABOUT)


@pytest.mark.parametrize("change", [{"seed": 1}, {"minimum": 3}, {"command": "x"}, {"tokenize": "13a"}])
def test_options_that_change_no_text_do_not_count(plan, change):
    assert text_settings(replace(plan, **change), ABOUT) == text_settings(plan, ABOUT)


def test_device_dtype_and_data_count(plan, tmp_path):
    settings = text_settings(plan, ABOUT)
    assert text_settings(plan, ABOUT | {"dtype": "bfloat16"}) != settings
    assert text_settings(plan, ABOUT | {"device": "cuda"}) != settings
    (tmp_path / "data.jsonl").write_text('{"input": "b", "output": "1"}\n')
    assert text_settings(plan, ABOUT) != settings


@pytest.mark.parametrize("field", ["fingerprint", "name"])
def test_source_counts_by_its_fingerprint(plan, tmp_path, field):
    # The tables are the same: only the manifest tells that the rest of the model is another one.
    model = shutil.copytree(plan.directory.path, tmp_path / "model")
    manifest = json.loads((model / "vt.json").read_text())
    manifest["source"][field] = "another"
    (model / "vt.json").write_text(json.dumps(manifest))
    other = replace(plan, directory=ModelDirectory.open(model))
    assert (text_settings(other, ABOUT) == text_settings(plan, ABOUT)) == (field == "name")
