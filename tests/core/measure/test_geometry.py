"""Geometries have the shapes that transformers derives from the same configurations, and can be run."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from vt_core import load
from vt_core.cli import build
from vt_core.errors import OptionError
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure import geometry
from vt_core.measure.geometry import GEOMETRIES, geometry_model, tensor_shapes
from vt_core.measure.output import load_bench
from vt_core.vocab.token_bytes import TokenTable

pytestmark = pytest.mark.slow

SMALL = {
    "vocab_size": 3000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Tiny geometries of the same kinds, in a cache of this test."""
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    for name, config in GEOMETRIES.items():
        windows = {"layer_types": config.get("layer_types", [])[4:6], "sliding_window_pattern": 2}
        layers = windows if "layer_types" in config else {}
        monkeypatch.setitem(geometry.GEOMETRIES, name, config | SMALL | layers)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tensor_shapes_match_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = GEOMETRIES[name]
    made = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    expected.pop("lm_head.weight")
    assert dict(tensor_shapes(config)) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("qwen3-0.6b", 596), ("qwen3-1.7b", 1721), ("llama-3.2-1b", 1236), ("gemma-3-270m", 268)],
)
def test_parameter_counts(name, millions):
    assert round(sum(np.prod(shape) for _, shape in tensor_shapes(GEOMETRIES[name])) / 1e6) == millions


def test_geometry_is_a_model_directory_with_random_rows(small):
    directory = geometry_model("gemma-3-270m")
    assert geometry_model("gemma-3-270m").path == directory.path
    directory.verify()
    manifest = ModelDirectory.open(directory.path).manifest
    assert (manifest.vocab_rows, manifest.hidden, manifest.tied) == (3000, 32, True)
    assert manifest.source.kind == "random"
    with directory.open_store() as store:
        rows = store.tables["embedding"].read(np.arange(3000))
    assert len(np.unique(rows, axis=0)) == 3000
    table = TokenTable.load(directory.tokenizer_path)
    assert table.size == 3000 and table.special_ids(3000).tolist() == [2999]
    assert len(table.ordinary_ids()) + len(table.byte_ids()) == 2999


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("name", GEOMETRIES)
def test_backends_run_geometries(small, backend, name):
    directory = geometry_model(name)
    texts = []
    for head in ("full", "prealloc"):
        model = load(directory.path, backend=backend, head=head, device="cpu", dtype="float32")
        model.decoder.head.set_static(range(500))
        texts.append(model.generate([5, 700, 2000], max_tokens=6).token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("backend", backend_params()[:1])
def test_outputs_say_that_weights_are_random(small, backend, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    arguments = ["bench", "--geometry", "qwen3-0.6b", "--variants", "prealloc", "--limit", "1"]
    arguments += ["--max-tokens", "4", "--minimum", "1", "--dtype", "float32", "--device", "cpu"]
    done = CliRunner().invoke(build(backend), [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = load_bench(out / "results.json")
    assert results["model"]["weights"] == "random" and results["model"]["name"] == "qwen3-0.6b"
    assert "random ids" in results["settings"]["prompts"]
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert "qwen3-0.6b (random weights)" in text and "The weights are random" in text
        assert "the text of" not in text
    assert "random weights" in done.output


def test_geometry_refuses_model_and_data(tmp_path):
    arguments = ["bench", "--geometry", "qwen3-0.6b", "--data", "x.jsonl", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(build("torch"), arguments)
    assert done.exit_code == 2 and "leave out --data" in done.stderr
    with pytest.raises(OptionError, match="unknown geometry 'x': choose one of"):
        geometry_model("x")
