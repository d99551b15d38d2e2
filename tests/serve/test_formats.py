"""Answers and tool calls that must follow a schema, on a tiny model with a template that shows tools."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.serve.running import running, tiny_model
from tests.serve.scripted import TEMPLATE
from vt_core.vocab.chat_template import ChatTemplates

pytest.importorskip("llguidance")

MESSAGES = [{"role": "user", "content": "the cat"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["animal", "legs"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
TOOLS = [
    {"type": "function", "function": {"name": "feed", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "walk", "parameters": SCHEMA}},
]


@pytest.fixture(scope="module")
def client(tiny):
    model = tiny_model(tiny)
    model.tokenizer.templates = ChatTemplates({"default": TEMPLATE})
    with (
        running({"m": model}) as server,
        openai.OpenAI(base_url=server.api, api_key="none", max_retries=0) as client,
    ):
        yield client


def chat(client, **options):
    return client.chat.completions.create(**{"model": "m", "messages": MESSAGES, "max_tokens": 60, **options})


def is_animal(text):
    found = json.loads(text)
    return (
        found.keys() == {"animal", "legs"} and found["animal"] in ("cat", "dog") and 0 <= found["legs"] <= 9
    )


def test_chat_follows_a_schema(client):
    for options in ({}, {"temperature": 1.5, "seed": 3}, {"extra_body": {"vt": {"approximate": True}}}):
        (choice,) = chat(client, response_format=FORMAT, **options).choices
        assert is_animal(choice.message.content) and choice.finish_reason == "stop"
    chunks = list(chat(client, response_format=FORMAT, stream=True))
    assert is_animal("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_reasoning_that_the_prompt_opens_ends_before_a_format(client):
    body = {"chat_template_kwargs": {"enable_thinking": True}}
    message = chat(client, response_format=FORMAT, extra_body=body).choices[0].message
    assert is_animal(message.content) and "reasoning_content" not in message.model_extra


def test_chat_gives_an_object(client):
    text = chat(client, response_format={"type": "json_object"}, max_tokens=3).choices[0].message.content
    assert text.startswith("{")


def test_response_follows_a_schema(client):
    form = {"type": "json_schema", "name": "animal", "schema": SCHEMA, "strict": True}
    found = client.responses.create(model="m", input="the cat", text={"format": form})
    assert is_animal(found.output_text) and found.status == "completed"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "feed"}}], ids=["required", "named"]
)
def test_a_call_can_be_demanded(client, choice):
    tools = (
        TOOLS if choice != "required" else [{**TOOLS[0]}, {**TOOLS[1], "function": {**TOOLS[1]["function"]}}]
    )
    (answer,) = chat(client, tools=tools, tool_choice=choice).choices
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    assert call.function.name in (["feed"] if choice != "required" else ["feed", "walk"])
    assert is_animal(call.function.arguments)
    chunks = list(chat(client, tools=tools, tool_choice=choice, stream=True))
    (call,) = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or []]
    assert is_animal(call.function.arguments)


def test_a_call_of_an_allowed_tool_can_be_demanded(client):
    # ``eat`` has no schema that can be enforced: only the allowed tools need one, and only they keep strict.
    unkept = {"name": "eat", "parameters": {"type": 3}, "strict": True}
    tools = [{"type": "function", "function": unkept}, *TOOLS]
    names = [{"type": "function", "function": {"name": "walk"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names}}
    message = chat(client, tools=tools, tool_choice=choice).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["walk"]
    assert is_animal(message.tool_calls[0].function.arguments)


def test_a_response_can_be_demanded_to_call(client):
    tools = [{"type": "function", **each["function"]} for each in TOOLS]
    choice = {"type": "function", "name": "walk"}
    found = client.responses.create(model="m", input="hi", tools=tools[1:], tool_choice=choice)
    assert [(item.type, item.name) for item in found.output] == [("function_call", "walk")]
    assert is_animal(found.output[0].arguments)


@pytest.mark.parametrize(
    ("param", "options"),
    [
        (
            "response_format",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
        ),
        ("tools", {"tools": TOOLS[1:], "response_format": FORMAT}),
        ("tools[0].function.strict", {"tools": TOOLS}),
        ("tool_choice", {"tools": TOOLS[1:], "tool_choice": {"type": "function", "function": {"name": "x"}}}),
        ("tool_choice.function", {"tools": TOOLS[1:], "tool_choice": {"type": "function"}}),
        ("tool_choice.type", {"tools": TOOLS[1:], "tool_choice": {"type": "custom"}}),
    ],
    ids=str,
)
def test_formats_that_cannot_be_kept_are_refused(client, param, options):
    reply = httpx.post(f"{client.base_url}chat/completions", json={"messages": MESSAGES, **options})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
