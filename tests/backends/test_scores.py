"""Scoring texts through :class:`vt_core.Model`. ``test_architectures`` compares values with the stock
frameworks.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests import stock
from tests.conftest import backend_params
from tests.tiny import KINDS, stock_source
from vt_core import load
from vt_core.errors import OptionError, PromptError


@pytest.fixture(scope="module", params=backend_params())
def model(request, tiny):
    return load(tiny("llama")[1], backend=request.param, device="cpu", dtype="float32")


def test_is_greedy_holds_for_greedy_text_only(model):
    prompt = "the cat sat"
    written = model.generate(prompt, max_tokens=8).token_ids
    score = model.score(prompt, written)
    assert score.token_ids == written and len(score.log_probs) == 8
    assert score.is_greedy and score.log_prob == sum(score.log_probs) < 0
    other = model.score(prompt, [*written[:3], 5, *written[4:]])
    assert other.greedy[:4] == (True, True, True, False) and not other.is_greedy
    assert other.log_probs[:3] == pytest.approx(score.log_probs[:3], abs=1e-5)
    assert other.log_probs[3] < score.log_probs[3]


def test_continuation_text_is_encoded_alone(model):
    ids = model.tokenizer.encode("on a mat", special=False).tolist()
    for options in ({}, {"raw": True}, {"system": "be brief"}):
        by_ids = model.score(model.encode("the cat sat ", **options).tolist(), ids)
        assert model.score("the cat sat ", "on a mat", **options).log_probs == by_ids.log_probs


def test_scores_do_not_depend_on_head_and_store(model, tiny):
    expected = model.score([5, 6, 7], [8, 9]).log_probs
    for options in ({"head": "full"}, {"store": "ram"}, {"head": "split", "tile_bytes": 3000}):
        other = load(tiny("llama")[1], backend=model.backend, device="cpu", dtype="float32", **options)
        assert other.score([5, 6, 7], [8, 9]).log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_scores_are_close_to_stock(model, kind, tiny):
    source, directory = tiny(kind, "bfloat16")
    prompt, text = list(range(20, 45)), [7, 900, 12]
    original = stock.LOAD[model.backend](stock_source(source, model.backend), "bfloat16")
    logits = stock.text_logits(model.backend, original, prompt, text)
    expected = stock.log_softmax(logits)[range(3), text]
    ours = load(directory, backend=model.backend, device="cpu", dtype="bfloat16").score(prompt, text)
    # Up to a few units in the last place of the logits.
    assert ours.log_probs == pytest.approx(expected, abs=3 * float(np.abs(logits).max()) * 2**-8)


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        ([], [5], "the prompt to score is empty"),
        ([5], [], "the continuation to score is empty"),
        ([5], "", "the continuation to score is empty"),
        ([5], [6, 10**6], "1000000"),
        ([5, -1], [6], "-1"),
        (
            [5] * 10,
            [6] * 504,
            "exceeds the context of 512",
        ),
    ],
)
def test_invalid_texts_are_refused(model, prompt, continuation, message):
    with pytest.raises(PromptError, match=message):
        model.score(prompt, continuation)
    assert (
        len(model.score([5] * 9, [6] * 504).log_probs) == 504
    )  # the model is still usable, and this just fits


def test_other_requests_between_scores_do_not_change_them(model):
    pairs = [([5], [6]), ([7], [8] * 500), ([9], [3])]
    expected = list(model.score_each(pairs))
    scores = []
    for score in model.score_each(pairs):
        scores.append(score)
        model.generate([5, 6, 7], max_tokens=3)
        assert model.score([5], [6]).token_ids == (6,)
    for one, other in zip(scores, expected, strict=True):
        np.testing.assert_array_equal(one.log_probs, other.log_probs)


def test_stop_at_a_special_token(model):
    """Decoded text omits special tokens, so they are recognized by id."""
    options = {"logit_bias": {1: 1000.0}, "max_tokens": 4}
    assert 1 not in model.eos_ids
    for exact in (True, False):
        free = model.generate([5, 6], approximate=not exact, **options)
        assert (free.text, free.token_ids, free.finish_reason) == ("", (1, 1, 1, 1), "length")
        stopped = model.generate([5, 6], approximate=not exact, stop=["<|im_start|>", "x"], **options)
        assert (stopped.text, stopped.token_ids, stopped.finish_reason) == ("", (1,), "stop")


def test_the_likeliest_tokens_come_with_their_scores(model):
    prompt, text = model.encode("the cat sat", raw=True).tolist(), [5, 9]
    (found,) = model.score_each([(prompt, text)], top=4)
    (plain,) = model.score_each([(prompt, text)])
    assert plain.top == ((), ()) and found.log_probs == plain.log_probs
    for at, likeliest in enumerate(found.top):
        ids, log_probs = zip(*likeliest, strict=True)
        assert len(ids) == 4 and list(log_probs) == sorted(log_probs, reverse=True)
        given = [*prompt, *text[:at]]
        singles = model.score_each([(given, [token]) for token in ids])
        assert list(log_probs) == pytest.approx([score.log_prob for score in singles], abs=1e-4)
        assert model.generate(given, max_tokens=1).token_ids == ids[:1]
    for wrong in (-1, 1001, 2.5, None):
        with pytest.raises(OptionError, match="top is"):
            model.score_each([(prompt, text)], top=wrong)
