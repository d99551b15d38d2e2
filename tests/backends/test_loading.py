"""Loading a model."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from tests.conftest import backend_params
from tests.tiny import write_model
from vt_core import load
from vt_core.errors import ModelError


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's list of mappings")
@pytest.mark.parametrize("run", ["float32", "bfloat16"])
def test_weights_are_mapped_unless_they_are_converted(tiny, run):
    torch = pytest.importorskip("torch")
    from vt_torch.body import _weights

    directory = tiny("llama", "bfloat16")[1]
    weights = {
        name: tensor[...]
        for name, tensor in _weights(sorted(directory.glob("*.safetensors")), getattr(torch, run)).items()
    }
    assert len(weights) > 20
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in lines
        if line[-1] == str(directory / "model.safetensors")
    ]
    inside = [any(a <= tensor.data_ptr() < b for a, b in mapped) for tensor in weights.values()]
    assert set(inside) == {run == "bfloat16"}


@pytest.mark.parametrize("backend", backend_params())
def test_weights_of_wrong_shape_are_named(backend, tmp_path):
    source = write_model(tmp_path / "in", "phi3")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    directory = convert(source, tmp_path / "vt", progress=False)
    with pytest.raises(ModelError, match=r"model\.layers\.\d\.mlp\.(down|gate_up)_proj\.weight"):
        load(directory, backend=backend, device="cpu")


@pytest.mark.parametrize("backend", backend_params())
def test_messages_about_a_converted_model_name_what_the_user_gave(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    source = write_model(tmp_path / "in", "phi3")
    config = json.loads((source / "config.json").read_text())
    for change in ({"intermediate_size": 96}, {"num_attention_heads": 0}):
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError) as caught:
            load(source, backend=backend, device="cpu")
        assert str(source) in str(caught.value)
        assert str(tmp_path / "cache") not in str(caught.value)


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("change", [{"num_hidden_layers": "x"}, {"num_attention_heads": 0}], ids=str)
def test_impossible_configuration_values_are_refused(backend, change, tmp_path):
    source = write_model(tmp_path / "in", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    directory = convert(source, tmp_path / "vt", progress=False)
    with pytest.raises(ModelError, match=r"mlx-lm cannot load|config\.json"):
        load(directory, backend=backend, device="cpu")


def test_logit_transform_reads_text_arguments_parsed_or_not():
    mx = pytest.importorskip("mlx.core")
    from vt_mlx.verification import logit_transform

    assert logit_transform(SimpleNamespace(text_config=SimpleNamespace(vocab_size=5))) is None
    for text in (SimpleNamespace(final_logit_softcapping=2.0), {"final_logit_softcapping": 2.0}):
        transform = logit_transform(SimpleNamespace(text_config=text))
        assert transform(mx.array([50.0])).item() == 2


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("shown", [True, False])
def test_application_settings_are_unchanged(backend, shown, tiny, monkeypatch):
    transformers_logging = pytest.importorskip("transformers").logging
    from huggingface_hub.utils import are_progress_bars_disabled

    def settings():
        logger = logging.getLogger("transformers")
        bars = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled("a.group")
        return logger.level, bars, list(warnings.filters)

    if backend == "mlx":
        import mlx.core as mx

        # The default device belongs to the whole process: another model may use another one.
        monkeypatch.setattr(mx, "set_default_device", None)
    monkeypatch.setattr(transformers_logging, "_tqdm_active", shown)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        before = settings()
        load(tiny("llama", "bfloat16")[1], backend=backend, device="cpu").generate([5, 6], max_tokens=3)
        assert settings() == before


@pytest.mark.parametrize("backend", backend_params())
def test_two_models_of_one_directory_map_its_store_once(backend, tiny):
    directory = tiny("llama")[1]
    first, second = (load(directory, backend=backend, device="cpu") for _ in range(2))
    maps = Path("/proc/self/maps")
    assert not maps.exists() or maps.read_text().count(f"{directory}/vocab.lmdb") == 1
    del first
    gc.collect()
    assert len(second.generate([5, 6], max_tokens=3).token_ids) == 3


def rewrite_weights(source, change):
    """Apply ``change`` to a dictionary of the weights of a Hugging Face directory."""
    file = source / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("backend", backend_params())
def test_unused_tensors_are_logged(backend, tiny, tmp_path, caplog):
    source, directory = tiny("llama")
    expected = load(directory, backend=backend, device="cpu").generate([5, 6, 7], max_tokens=8).token_ids
    beside = {
        "v_head.summary.weight": np.ones((1, 32), np.float32),
        "model.layers.9.mlp.up_proj.weight": np.ones((64, 32), np.float32),
        "model.layers.0.self_attn.masked_bias": np.ones((), np.float32),
    }
    source = shutil.copytree(source, tmp_path / "source")
    rewrite_weights(source, lambda tensors: tensors.update(beside))
    directory = convert(source, tmp_path / "vt", progress=False)
    with caplog.at_level(logging.INFO, "vt"):
        model = load(directory, backend=backend, device="cpu")
    (record,) = [record for record in caplog.records if record.name == "vt"]
    assert all(name in record.getMessage() for name in beside) and str(directory) in record.getMessage()
    assert model.generate([5, 6, 7], max_tokens=8).token_ids == expected


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("kind", ["llama", "llama-4bit"])
def test_missing_tensors_are_all_named(backend, kind, tiny, tmp_path):
    source = shutil.copytree(tiny(kind)[0], tmp_path / "source")
    gone = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1)]
    rewrite_weights(source, lambda tensors: [tensors.pop(name) for name in gone])
    directory = convert(source, tmp_path / "vt", progress=False)
    with pytest.raises(ModelError, match=re.escape(", ".join(gone)) if kind == "llama" else "o_proj"):
        load(directory, backend=backend, device="cpu")
