"""Layouts of weights that stock frameworks read, run by both backends."""

from __future__ import annotations

import json

import pytest

from converters import convert
from tests import stock
from tests.changes import write_changed
from tests.conftest import backend_params
from tests.tiny import write_model
from vt_core import load
from vt_core.errors import ModelError

PROMPT = list(range(300, 320))


def ids(path, backend, **options):
    model = load(path, backend=backend, device="cpu", dtype="float32", **options)
    return list(model.generate(PROMPT, max_tokens=8).token_ids)


@pytest.mark.parametrize("backend", backend_params())
def test_tied_table_may_be_stored_under_the_heads_name(backend, tiny, tmp_path):
    source, directory = tiny("llama")

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    renamed = write_changed(source, tmp_path / "in", rename)
    assert ids(convert(renamed, tmp_path / "out", progress=False), backend) == ids(directory, backend)


def test_layers_that_differ_from_the_global_mode_are_affine(tmp_path):
    """The layout of gpt-oss on MLX: other layers name bits and group size, and no mode."""
    mx = pytest.importorskip("mlx.core")
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    source = write_model(tmp_path / "in", "llama-wide")
    affine = {"group_size": 64, "bits": 8}

    def how(path, module):
        return (
            True
            if "mlp" in path
            else affine | {"mode": "affine"}
            if hasattr(module, "to_quantized")
            else False
        )

    with mx.stream(mx.cpu):
        model, config = quantize_model(
            *load_model(source, lazy=True), 32, 4, mode="mxfp4", quant_predicate=how
        )
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(source / "model.safetensors"), weights, {"format": "mlx"})
    overrides = [value for value in config["quantization"].values() if isinstance(value, dict)]
    assert len(overrides) > 5 and all(override.pop("mode") == "affine" for override in overrides)
    config["quantization_config"] = config["quantization"]
    (source / "config.json").write_text(json.dumps(config))
    directory = convert(source, tmp_path / "out", progress=False)
    expected = stock.generate(stock.load("mlx", source, "float32"), PROMPT, 8, eos=(0, 2))[0]
    assert ids(directory, "mlx") == expected
    with pytest.raises(ModelError, match="is quantized in the mode 'mxfp4', which only MLX reads"):
        load(directory, backend="torch", device="cpu")
