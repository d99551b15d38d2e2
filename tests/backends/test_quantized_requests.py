"""Requests of every kind on models of integers: their texts are those of the same head held whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from converters.cache import resolve
from tests import stock
from tests.tiny import PADDING_ROWS
from vt_core import load
from vt_core.files.integers import MODES

pytest.importorskip("torch")

#: Tied, untied, with a window of 16 tokens, with a soft cap, and with recurrent layers.
KINDS = ["llama", "qwen2", "gemma3", "gemma2", "mamba"]
PROMPTS = ["abc def ghi jkl mno", "pqr stu", "vwx yz abc abc abd"]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "size": {"enum": [1, 20, 300]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
SAMPLINGS = [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}, {"repetition_penalty": 1.3}]


@pytest.fixture(scope="module", params=KINDS)
def models(request, tiny):
    """A model with the full head, and one with a third of the rows. Their layers multiply in float32, where a
    batch or a draft does not change the body's roundings.
    """
    mode = MODES[KINDS.index(request.param) % 2]
    directory = resolve(tiny(request.param)[1], quantize=mode, progress=False)
    options = {"backend": "torch", "device": "cpu", "dtype": "float32"}
    full, reduced = (load(directory, head=head, **options) for head in ("full", "prealloc"))
    reduced.set_static(reduced.decoder.head.vocabulary.ids[::3])
    assert full.quantization == reduced.quantization == mode
    return full, reduced


@pytest.fixture(autouse=True)
def _forget(models):
    models[1].forget_learned()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drafted_and_undrafted_texts(models, sampling):
    full, reduced = models
    options = {"max_tokens": 20, **sampling}
    expected = full.generate(PROMPTS[2], draft="none", **options)
    for draft in ("none", "ngram"):
        result = reduced.generate(PROMPTS[2], draft=draft, **options)
        assert result.token_ids == expected.token_ids and result.exact


def test_turns_of_a_session(models):
    full, reduced = models
    session, expected = (model.session(system="jkl", max_tokens=8) for model in (reduced, full))
    for turn in PROMPTS:
        assert session.send(turn).token_ids == expected.send(turn).token_ids


def test_requests_at_once(models):
    full, reduced = models
    found = dict(reduced.generate_many(PROMPTS, max_tokens=12))
    for index, prompt in enumerate(PROMPTS):
        assert found[index].token_ids == full.generate(prompt, max_tokens=12).token_ids


def test_structured_answers(models):
    full, reduced = models
    options = {"max_tokens": 120, "json_schema": CITY}
    expected = full.generate(PROMPTS[0], **options)
    assert set(json.loads(expected.text)) == {"city", "size"}
    assert reduced.generate(PROMPTS[0], **options).text == expected.text


def test_scores_are_those_of_the_whole_head(models):
    full, reduced = models
    prompt, text = [5, 17, 300, 42], [7, 900, 12]
    logits = []
    for count in range(len(text)):
        slot = full.decoder.open()
        logits.append(full.decoder.logits(full.decoder.prefill(slot, np.array([*prompt, *text[:count]])))[0])
        full.decoder.close(slot)
    padded = np.pad(logits, ((0, 0), (0, PADDING_ROWS)))  # their rows are zeros
    expected = stock.log_softmax(padded)[range(len(text)), text]
    assert reduced.score(prompt, text).log_probs == pytest.approx(expected, abs=1e-3)
    written = full.generate(prompt, max_tokens=6).token_ids
    assert reduced.score(prompt, written).is_greedy


def test_tables_may_lie_in_memory_and_tiles_be_small(models):
    full, reduced = models
    model = load(
        reduced.directory.path, backend="torch", device="cpu", dtype="float32", store="ram", tile_bytes=5000
    )
    model.set_static(range(0, 300, 2))
    expected = full.generate(PROMPTS[1], max_tokens=8).token_ids
    assert model.generate(PROMPTS[1], max_tokens=8).token_ids == expected
