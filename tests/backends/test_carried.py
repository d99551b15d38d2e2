"""Models whose layers came quantised (GPTQ, AWQ, compressed-tensors), with tables in floats."""

from __future__ import annotations

import importlib.util

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from benchmarks import stock
from converters import convert
from tests.carried import PACK, write_carried
from tests.conftest import backend_params
from vt_core import load
from vt_core.cli import build
from vt_core.errors import BackendError, ModelError, OptionError

PROMPT = [5, 17, 300, 42, 42, 980, 7]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
#: What runs which, and the package that it needs besides.
RUNS = {("mlx", "awq"): None, ("torch", "compressed-tensors"): "compressed_tensors"}

pytestmark = pytest.mark.parametrize("method", PACK)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(method)``: the packed directory, one of its floats, and the model directory; made once."""
    done: dict = {}

    def make(method):
        if method not in done:
            packed, floats = write_carried(tmp_path_factory.mktemp(method), method)
            done[method] = packed, floats, convert(packed, packed.parent / "vt", progress=False)
        return done[method]

    return make


def test_layers_are_carried_and_tables_go_to_the_store(method, made):
    packed, _, directory = made(method)
    before, after = (load_file(path / "model.safetensors") for path in (packed, directory))
    assert before.keys() - after.keys() == set(TABLES)
    assert sum(part.dtype == "int32" for part in after.values()) >= 3 * 7
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype and (tensor == before[name]).all(), name


@pytest.mark.parametrize("backend", backend_params())
def test_the_text_is_that_of_the_floats_or_refused_by_name(method, backend, made):
    _, floats, directory = made(method)
    package = RUNS.get((backend, method), "no")
    if package is not None and importlib.util.find_spec(package) is None:
        needed = "for which transformers needs (optimum and )?(gptqmodel|compressed-tensors)"
        with pytest.raises((BackendError, ModelError), match=f"mlx-lm does not read layers|{needed}"):
            load(directory, backend=backend)
        return
    original = stock.LOAD[backend](floats, "float32")
    expected = stock.GENERATE[backend](original, PROMPT, 24, eos=[0, 2])[0]
    assert len(set(expected)) >= 8
    for head in ("full", "prealloc"):
        model = load(directory, backend=backend, head=head, device="cpu", dtype="float32")
        model.decoder.head.set_static(range(0, 300, 2))
        result = model.generate(PROMPT, max_tokens=24)
        assert list(result.token_ids) == expected and result.quantization == method


def test_inspect_names_the_layout(method, made):
    done = CliRunner().invoke(build("torch"), ["inspect", str(made(method)[2])])
    assert f"quantised    {method}; the tables are not" in done.stdout


def test_they_are_not_quantised_again(method, made, tmp_path):
    packed, _, directory = made(method)
    for options, name in (({"quantize": 4}, "--quantize"), ({"dtype": "bfloat16"}, "--dtype")):
        with pytest.raises(OptionError, match=rf"quantised already \({method}\).*leave {name} out"):
            convert(packed, tmp_path / "again", progress=False, **options)
    pytest.importorskip("torch")
    with pytest.raises(BackendError, match=rf"quantised already \({method}\); leave --quantize out"):
        load(directory, backend="torch", quantize="int8")
