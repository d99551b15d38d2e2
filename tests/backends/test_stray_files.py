"""Backends load the files of the manifest and no others."""

from __future__ import annotations

import shutil

import pytest

from converters.safetensors_io import read_header
from tests.conftest import backend_params
from vt_core import load


@pytest.mark.parametrize("backend", backend_params())
def test_stray_weight_files_are_not_loaded(backend, tiny, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    directory = tiny("llama", "float32")[1]
    expected = load(directory, backend=backend).generate("ab c", max_tokens=8, raw=True).token_ids
    stray = shutil.copytree(directory, tmp_path / "model")
    name = next(name for name in read_header(stray / "model.safetensors") if "q_proj" in name)
    weights = numpy.load_file(stray / "model.safetensors")
    # Sorts after, and before, the file that the manifest lists.
    for file in ("model-extra.safetensors", "z.safetensors"):
        numpy.save_file({name: 0 * weights[name], "lm_head.weight": weights[name]}, stray / file)
    found = load(stray, backend=backend).generate("ab c", max_tokens=8, raw=True).token_ids
    assert found == expected
