"""Markers of tool calls and of reasoning that are special tokens, which decoded text leaves out."""

from __future__ import annotations

import json

import openai
import pytest

from converters import convert
from tests.serve.chain import write_chain
from tests.serve.running import running
from vt_core import load

TURNS = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
FLAT = [{"type": "function", "name": "weather", "parameters": PARAMETERS}]
MESSAGES = [{"role": "user", "content": "hi"}]
HERMES = (
    *("<think>", "Hm", ".", "</think>", "\n\n", "I look", ".\n"),
    *("<tool_call>", '\n{"name": "weather",', ' "arguments": {"city"', ': "Turin"}}\n', "</tool_call>"),
)
MISTRAL = ("I look", ".\n", "[TOOL_CALLS]", "weather", "[ARGS]", '{"city": "', 'Turin"}')
LFM = (
    *("<think>", "Hm", ".", "</think>", "I look."),
    *("<|tool_call_start|>", "[weather(city=", '"Turin")]', "<|tool_call_end|>"),
)

#: What a model writes, which tokens of that are special, and what its chat template shows.
FAMILIES = {
    "hermes": (HERMES, {"<think>", "</think>", "<tool_call>", "</tool_call>"}, "<tool_call>"),
    "hermes, not special": (HERMES, set(), "<tool_call>"),
    "mistral": (MISTRAL, {"[TOOL_CALLS]", "[ARGS]"}, "[TOOL_CALLS] [ARGS]"),
    "lfm2": (LFM, {token for token in LFM if token[0] == "<"}, "<|tool_call_start|>"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A client of a model of a family, and whether it reasons."""
    pytest.importorskip("torch")
    tokens, special, sign = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("chain")
    template = f"{{% if tools %}}{{{{ '{sign}' }}}}{{% endif %}}{TURNS}assistant: "
    directory = convert(write_chain(folder / "hf", tokens, special, template), folder / "vt", progress=False)
    model = load(directory, backend="torch", device="cpu", dtype="float32")
    with running({"m": model}) as server, openai.OpenAI(base_url=server.api, api_key="none") as client:
        yield client, "<think>" in tokens, tokens, special


def test_calls_and_reasoning_are_found(family):
    client, reasons, *_ = family
    (choice,) = client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS).choices
    message = choice.message
    assert (message.content, choice.finish_reason) == ("I look.", "tool_calls")
    assert (message.model_extra or {}).get("reasoning_content") == ("Hm." if reasons else None)
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Turin"})


@pytest.mark.parametrize("stop", [None, ["look.\n\n", "Hm. "]], ids=["", "with text held back"])
def test_calls_and_reasoning_are_found_in_streams(family, stop):
    client, reasons, *_ = family
    text = thought = ""
    calls = []
    options = {} if stop is None else {"stop": stop}
    stream = client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, stream=True, **options)
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        thought += (choice.delta.model_extra or {}).get("reasoning_content", "")
        calls += choice.delta.tool_calls or []
    assert (text, thought, choice.finish_reason) == ("I look.", "Hm." if reasons else "", "tool_calls")
    assert [(call.index, json.loads(call.function.arguments)) for call in calls] == [(0, {"city": "Turin"})]


def test_items_of_responses(family):
    client, reasons, *_ = family
    found = client.responses.create(model="m", input="hi", tools=FLAT)
    kinds = ["reasoning"] * reasons + ["message", "function_call"]
    assert [item.type for item in found.output] == kinds and found.output_text == "I look."
    assert found.output[-1].name == "weather"


def test_completions_leave_special_tokens_out(family):
    client, _, tokens, special = family
    text = client.completions.create(model="m", prompt="hi", max_tokens=32).choices[0].text
    assert text == "".join(token for token in tokens if token not in special)
