"""A logit that is not a number is an error wherever it appears, never a choice of token 0."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from tests.conftest import backend_params
from vt_core import load
from vt_core.errors import ModelError

PROMPT = [5, 17, 300, 42]
MESSAGE = r"logits that are not finite numbers.*--dtype"
pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture
def damaged(tiny, tmp_path):
    """``damaged(kind, name, rows)``: a model directory with NaN in some rows of a tensor."""

    def make(kind, name, rows):
        source = shutil.copytree(tiny(kind)[0], tmp_path / "source")
        tensors = load_file(source / "model.safetensors")
        tensors[name][rows] = np.nan
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        return convert(source, tmp_path / "vt", progress=False)

    return make


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}], ids=["greedy", "sampled"])
def test_nan_in_the_middle_of_a_text(backend, damaged, approximate, sampling):
    # Only the prompt has embeddings, so the step after the first generated token has no valid logit.
    rows = np.setdiff1d(np.arange(2000), PROMPT)
    model = load(damaged("qwen2", "model.embed_tokens.weight", rows), backend=backend, device="cpu")
    model.decoder.head.set_static(range(500, 600))
    stream = model.stream(PROMPT, max_tokens=8, approximate=approximate, **sampling)
    with pytest.raises(ModelError, match=MESSAGE):
        list(stream)
    assert model.decoder.head.vocabulary.ids.tolist() == list(range(500, 600))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_nan_in_a_row_of_the_full_head_only(backend, damaged, sampling):
    directory = damaged("qwen2", "lm_head.weight", [700])
    model = load(directory, backend=backend, device="cpu", tile_bytes=20_000)
    model.decoder.head.set_static(range(500, 600))
    assert len(model.generate(PROMPT, max_tokens=4, approximate=True, **sampling).token_ids) == 4
    with pytest.raises(ModelError, match=MESSAGE):
        model.generate(PROMPT, max_tokens=4, **sampling)
    with pytest.raises(ModelError, match=MESSAGE):
        model.score(PROMPT, [6, 7])
