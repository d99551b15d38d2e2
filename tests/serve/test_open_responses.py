"""Responses and their events against the Open Responses specification."""

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import ValidationError

from tests.serve.running import running, tiny_model
from tests.serve.scripted import Scripted
from tests.serve.test_tools import CALL

specification = pytest.importorskip("openresponses_types")

EVENTS = [each for name, each in vars(specification).items() if name.endswith("StreamingEvent")]
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}


def message(role, content):
    return {"type": "message", "role": role, "content": content}


#: What the model says, and the request.
CASES = {
    "text": ("Hello there.", {"input": [message("user", "Say hello.")]}),
    "system prompt": ("Ahoy.", {"input": [message("system", "A pirate."), message("user", "Hello.")]}),
    "turns": (
        "Alice.",
        {"input": [message("user", "I am Alice."), message("assistant", "Hello."), message("user", "Who?")]},
    ),
    "call": (CALL, {"input": "Weather?", "tools": [TOOL]}),
    "text and call": (f"I look.{CALL}", {"input": "Weather?", "tools": [TOOL], "tool_choice": "auto"}),
    "options": (
        "Hello.",
        {
            "input": "Hello.",
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            "presence_penalty": 0.5,
            "safety_identifier": "someone",
            "store": False,
            "top_logprobs": 1,
        },
    ),
}


@pytest.fixture(scope="module")
def script(tiny):
    with running({"s": Scripted(tiny_model(tiny))}, cache_bytes=0) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_responses_follow_the_specification(script, name):
    script.models["s"].text, request = CASES[name]
    whole = httpx.post(f"{script.api}/responses", json={"model": "s", **request}).json()
    specification.ResponseResource.model_validate(whole)
    assert whole["status"] == "completed" and whole["output"]

    streamed = httpx.post(f"{script.api}/responses", json={"model": "s", **request, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    for event in events:
        assert follows_an_event(event), event
    specification.ResponseResource.model_validate(events[-1]["response"])
    kinds = [item["type"] for item in whole["output"]]
    assert [item["type"] for item in events[-1]["response"]["output"]] == kinds
    assert ("function_call" in kinds) == ("call" in name)


def test_fields_of_the_request_are_repeated(script):
    script.models["s"].text = '{"a": 1}'
    options = {"frequency_penalty": 0.5, "prompt_cache_key": "k", "text": {"format": SCHEMA}, "tools": [TOOL]}
    body = {"model": "s", "input": "x", "tool_choice": "none", **options}
    found = httpx.post(f"{script.api}/responses", json=body).json()
    assert (found["frequency_penalty"], found["presence_penalty"]) == (0.5, 0.0)
    assert (found["prompt_cache_key"], found["safety_identifier"]) == ("k", None)
    assert found["text"]["format"] == {**SCHEMA, "description": None}
    assert found["tools"] == [{**TOOL, "description": None, "strict": None}]


def follows_an_event(event):
    for kind in EVENTS:
        try:
            kind.model_validate(event)
        except ValidationError:
            continue
        return True
    return False
