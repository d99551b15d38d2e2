"""Phi 3 turns all keys of a long text otherwise than those of a short one: a text that grows is read anew,
and a long one is not read in pieces.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from converters import convert
from tests import stock
from tests.conftest import backend_params
from tests.tiny import write_model
from vt_core import load

RANGE = 48  #: tokens of a short text
TEXT = np.random.default_rng(0).integers(3, 900, 60).tolist()
pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture(scope="module", params=[None, 16], ids=["all", "window"])
def source(request, tmp_path_factory):
    source = write_model(tmp_path_factory.mktemp("long") / "source", "phi3", sliding_window=request.param)
    file = source / "config.json"
    config = json.loads(file.read_text())
    for part in (config, config["rope_parameters"], config["rope_scaling"]):
        part["original_max_position_embeddings"] = RANGE
    file.write_text(json.dumps(config))
    return source


def test_texts_are_the_stock_frameworks_on_both_sides_and_across(backend, source, tmp_path, monkeypatch):
    monkeypatch.setattr("vt_core.decode.decoder.PREFILL_TOKENS", 13)
    original = stock.LOAD[backend](source, "float32")
    directory = convert(source, tmp_path / "vt", progress=False)
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    for length in (20, RANGE - 6, len(TEXT)):
        expected = stock.GENERATE[backend](original, TEXT[:length], 16, eos=[0, 2])[0]
        assert len(expected) == 16
        # Blocks with a miss are taken back across the border, too.
        model.forget_learned()
        model.decoder.head.set_static(sorted(expected)[::2])
        result = model.generate(TEXT[:length], max_tokens=16)
        assert list(result.token_ids) == expected and result.stats.rescued > 0
    for start in (5, RANGE + 1):
        (score,) = model.score_each([(TEXT[:start], TEXT[start:])])
        logits = stock.text_logits(backend, original, TEXT[:start], TEXT[start:])
        wanted = stock.log_softmax(logits)[range(len(logits)), TEXT[start:]]
        np.testing.assert_allclose(score.log_probs, wanted, rtol=1e-4, atol=1e-4)
