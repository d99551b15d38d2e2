"""Answers that follow a grammar, on the real backends: valid, and those of the full head under the masks."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from tests.conftest import backend_params
from vt_core import load
from vt_core.errors import ConstraintError, OptionError

PROMPT = "abc def ghi"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["abc", "def ghi", "zz"]},
        "name": {"type": "string", "maxLength": 12},
        "numbers": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 3,
        },
        "day": {"type": "string", "format": "date"},
    },
    "required": ["kind", "name", "numbers", "day"],
    "additionalProperties": False,
}
SAMPLINGS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.95, "seed": 3},
    "top_k": {"temperature": 1.3, "top_k": 7, "top_p": 0.8, "seed": 4},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 0.7, "seed": 5},
}
#: Full attention, tied; untied; a window of 16 tokens; recurrent layers.
KINDS = ["llama", "qwen2", "gemma3", "mamba"]

every_backend = pytest.mark.parametrize("backend", backend_params())
every_kind = pytest.mark.parametrize("kind", KINDS)


def open_models(backend, kind, tiny, dtype="float32"):
    """A model with the full head, and one with a third of the rows."""
    directory = tiny(kind, dtype)[1]
    full, reduced = (
        load(directory, backend=backend, device="cpu", dtype=dtype, head=head)
        for head in ("full", "prealloc")
    )
    reduced.set_static(reduced.decoder.head.vocabulary.ids[::3])
    return full, reduced


@every_backend
@every_kind
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_exact_answers_are_valid_and_those_of_the_full_head(backend, kind, sampling, tiny):
    full, reduced = open_models(backend, kind, tiny)
    options = {"max_tokens": 150, "json_schema": SCHEMA, **SAMPLINGS[sampling]}
    expected = full.generate(PROMPT, **options)
    assert expected.finish_reason == "stop"
    jsonschema.validate(json.loads(expected.text), SCHEMA)
    for draft in ("none", "ngram"):
        result = reduced.generate(PROMPT, draft=draft, **options)
        assert result.token_ids == expected.token_ids
        assert result.text == expected.text and result.finish_reason == "stop" and result.exact
        assert draft == "ngram" or result.stats.drafted == 0
    stats = result.stats
    assert stats.forced > 0 and stats.scanned > 0 and stats.certain >= 15
    assert stats.certain + stats.gathered + stats.scanned >= len(result.token_ids)
    assert reduced.decoder.head.vocabulary.dynamic_size == 0


@every_backend
@pytest.mark.parametrize("kind", ["llama", "llama-4bit", "qwen2-8bit"])
def test_answers_in_bfloat16_are_those_of_the_full_head(backend, kind, tiny):
    full, reduced = open_models(backend, kind, tiny, "bfloat16")
    # Reads of other lengths round differently.
    options = {"max_tokens": 150, "json_schema": SCHEMA, "draft": "none"}
    for sampling in SAMPLINGS.values():
        expected = full.generate(PROMPT, **options, **sampling)
        assert reduced.generate(PROMPT, **options, **sampling).token_ids == expected.token_ids


@every_backend
def test_approximate_answers_are_valid_and_read_the_full_head_never(backend, tiny):
    _, reduced = open_models(backend, "llama", tiny)
    result = reduced.generate(PROMPT, json_schema=SCHEMA, approximate=True, max_tokens=150)
    jsonschema.validate(json.loads(result.text), SCHEMA)
    assert result.stats.verifications == result.stats.scanned == 0 and not result.exact


@every_backend
def test_answers_without_an_active_token_are_written_all_the_same(backend, tiny):
    full, reduced = open_models(backend, "llama", tiny)
    reduced.set_static([0, 1, 2])
    for approximate in (True, False):
        result = reduced.generate("abc", regex="[xyz]{9}", dynamic=False, approximate=approximate)
        assert re.fullmatch("[xyz]{9}", result.text)
    assert result.token_ids == full.generate("abc", regex="[xyz]{9}").token_ids


@every_backend
def test_an_answer_that_is_cut_says_length(backend, tiny):
    _, model = open_models(backend, "llama", tiny)
    whole = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=150)
    cut = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=10)
    assert cut.finish_reason == "length" and cut.token_ids == whole.token_ids[:10]
    just = model.generate(PROMPT, json_schema=SCHEMA, max_tokens=len(whole.token_ids))
    assert just.finish_reason == "stop" and just.text == whole.text


@every_backend
def test_an_answer_may_end_with_eos_where_the_grammar_allows_more(backend, tiny):
    full, model = open_models(backend, "llama", tiny)
    options = {"regex": "(a|b)*", "logit_bias": {0: 30.0}, "max_tokens": 20}
    result = model.generate(PROMPT, **options)
    assert result.token_ids == full.generate(PROMPT, **options).token_ids == (0,)
    assert result.text == "" and result.finish_reason == "stop"


@every_backend
def test_a_lark_grammar_is_followed(backend, tiny):
    full, model = open_models(backend, "qwen2", tiny)
    grammar = 'start: "abc" (" " WORD){1,3}\nWORD: /[d-h]{2,4}/'
    result = model.generate(PROMPT, grammar=grammar, temperature=1.0)
    assert re.fullmatch("abc( [d-h]{2,4}){1,3}", result.text)
    assert result.token_ids == full.generate(PROMPT, grammar=grammar, temperature=1.0).token_ids


@every_backend
@every_kind
def test_turns_of_a_session_follow_its_schema(backend, kind, tiny, tmp_path):
    _, model = open_models(backend, kind, tiny)
    session = model.session(json_schema=SCHEMA, max_tokens=150)
    texts = [session.send("abc"), session.send("def")]
    for result in texts:
        jsonschema.validate(json.loads(result.text), SCHEMA)
    messages = session.messages[:3]
    assert texts[1].token_ids == model.generate(messages, json_schema=SCHEMA, max_tokens=150).token_ids
    session.save(tmp_path / "s.safetensors")
    third = model.load_session(tmp_path / "s.safetensors").send("ghi")
    assert third.token_ids == session.send("ghi").token_ids
    jsonschema.validate(json.loads(third.text), SCHEMA)


@every_backend
def test_requests_that_run_together_follow_grammars_of_their_own(backend, tiny):
    full, model = open_models(backend, "llama", tiny)
    requests = [
        {"prompt": "abc", "json_schema": SCHEMA},
        {"prompt": "def ghi", "regex": "[0-9]{3}-[a-f]{2}"},
        {"prompt": "jkl"},
        {"prompt": "mno", "json_schema": {"enum": ["x", "yz"]}, "approximate": True},
        {"prompt": "pqr", "json_schema": SCHEMA, "temperature": 1.0, "seed": 8},
    ]
    results = [
        result
        for _, result in sorted(
            model.generate_many(requests, max_tokens=150, batch="alone"), key=lambda pair: pair[0]
        )
    ]
    for request, result in zip(requests, results, strict=True):
        if not request.get("approximate"):
            expected = full.generate(request.pop("prompt"), max_tokens=150, **request)
            assert result.token_ids == expected.token_ids
    assert results[3].text in ('"x"', '"yz"')


@every_backend
def test_wrong_options_are_refused_before_anything_runs(backend, tiny):
    model = load(tiny("llama")[1], backend=backend, device="cpu")
    with pytest.raises(ConstraintError, match="uses uniqueItems"):
        model.generate(PROMPT, json_schema={"uniqueItems": True})
    with pytest.raises(ConstraintError, match="allows no text"):
        model.session(regex=r"[^\s\S]")
    with pytest.raises(OptionError, match="stop does not go with regex"):
        model.generate(PROMPT, regex="a", stop="x")
    with pytest.raises(OptionError, match="do not go together"):
        model.generate(PROMPT, regex="a", grammar="start: /a/")


@every_backend
def test_a_stream_may_be_left_in_the_middle_of_a_grammar(backend, tiny):
    _, model = open_models(backend, "llama", tiny)
    chunks = model.stream(PROMPT, json_schema=SCHEMA)
    first = next(chunks).token_id
    chunks.close()
    assert np.array_equal(model.decoder.head.vocabulary.dynamic_size, 0)
    assert model.generate(PROMPT, json_schema=SCHEMA, max_tokens=150).token_ids[0] == first
