"""Rotary embeddings that depend on the length of the text (longrope, dynamic NTK): the ids are those of the
stock framework on both sides of the threshold, after a rollback across it, and in a short request after a
long one.
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

THRESHOLD = 48  #: tokens of the longest text that is not scaled
TEXT = np.random.default_rng(0).integers(3, 900, 60).tolist()
LONGROPE = {"original_max_position_embeddings": THRESHOLD}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
CASES = {
    "longrope": ("phi3", {}, LONGROPE, {}),
    "longrope, window": ("phi3", {"sliding_window": 16}, LONGROPE, {}),
    "dynamic": ("llama", {}, DYNAMIC, {"max_position_embeddings": THRESHOLD}),
}
pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def directories(request, tmp_path_factory):
    """Source and model directory."""
    kind, changes, scaling, more = request.param
    root = tmp_path_factory.mktemp("long")
    source = write_model(root / "source", kind, **changes)
    file = source / "config.json"
    config = json.loads(file.read_text())
    for name in ("rope_parameters", "rope_scaling"):
        config[name] = (config.get(name) or {}) | scaling
    file.write_text(json.dumps(config | more | (scaling if scaling is LONGROPE else {})))
    return source, convert(source, root / "vt", progress=False)


def test_stock_ids_and_scores_across_the_threshold(backend, directories, monkeypatch):
    source, directory = directories
    if backend == "torch":  # mlx-lm reads long prompts in pieces too, of another size
        monkeypatch.setattr("vt_core.decode.framework.Framework.prefill_tokens", 13)
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    # The longest first: its state must not leak into the others.
    for length in (len(TEXT), THRESHOLD - 6, 20):
        # Stock models remember the longest text as well.
        original = stock.LOAD[backend](source, "float32")
        expected = stock.GENERATE[backend](original, TEXT[:length], 16, eos=[0, 2])[0]
        assert len(expected) == 16
        # Blocks with a miss are taken back across the threshold, too.
        model.forget_learned()
        model.decoder.head.set_static(sorted(expected)[::2])
        result = model.generate(TEXT[:length], max_tokens=16)
        assert list(result.token_ids) == expected and result.stats.rescued > 0
    for start in (5, THRESHOLD + 1):
        (score,) = model.score_each([(TEXT[:start], TEXT[start:])])
        original = stock.LOAD[backend](source, "float32")
        logits = stock.text_logits(backend, original, TEXT[:start], TEXT[start:])
        wanted = stock.log_softmax(logits)[range(len(logits)), TEXT[start:]]
        np.testing.assert_allclose(score.log_probs, wanted, rtol=1e-4, atol=1e-4)


def test_sessions_beside_a_stream_do_not_change_it(backend, directories):
    model = load(directories[1], backend=backend, device="cpu", dtype="float32")
    prompt = TEXT[: THRESHOLD - 6]
    expected = list(model.generate(prompt, max_tokens=24).token_ids)
    model.forget_learned()
    model.decoder.head.set_static(sorted(expected)[::2])
    found = []
    for chunk in model.stream(prompt, max_tokens=24):
        if chunk.token_id is not None:
            found.append(chunk.token_id)
            with model.session(max_tokens=2) as session:
                session.send("abc")
    assert found == expected and chunk.result.stats.rescued > 0
