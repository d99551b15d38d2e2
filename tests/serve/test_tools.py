"""Tool calls and reasoning in chat completions and responses, with a model that follows a script."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.serve.running import running, tiny_model
from tests.serve.scripted import Scripted

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
FLAT = [{"type": "function", "name": "weather", "parameters": PARAMETERS}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Turin"}}\n</tool_call>'
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def script(tiny):
    with running({"s": Scripted(tiny_model(tiny))}, cache_bytes=0) as server:
        yield server


@pytest.fixture
def model(script):
    return script.models["s"]


@pytest.fixture(scope="module")
def client(script):
    with openai.OpenAI(base_url=script.api, api_key="none", max_retries=0) as client:
        yield client


def chat(client, **options):
    return client.chat.completions.create(**{"model": "s", "messages": MESSAGES, "max_tokens": 99, **options})


def test_calls_are_parsed(client, model):
    model.text = f"I look.\n{CALL}\n{CALL}"
    (choice,) = chat(client, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    calls = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Turin"})
    ] * 2
    assert len({call.id for call in calls}) == 2
    assert model.prompts[-1].startswith("[weather]<tool_call>")


def test_calls_stream(client, model):
    model.text = f"I look.\n{CALL}{CALL}"
    text, calls = "", {}
    for chunk in chat(client, tools=TOOLS, stream=True):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            calls[call.index] = (call.function.name, json.loads(call.function.arguments))
        reason = choice.finish_reason
    assert (text, reason) == ("I look.", "tool_calls")
    assert calls == {0: ("weather", {"city": "Turin"}), 1: ("weather", {"city": "Turin"})}


def test_one_call_where_several_are_not_wanted(client, model):
    model.text = CALL + CALL
    assert len(chat(client, tools=TOOLS, parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    chunks = chat(client, tools=TOOLS, parallel_tool_calls=False, stream=True)
    assert sum(len(chunk.choices[0].delta.tool_calls or []) for chunk in chunks) == 1


def test_without_tools_calls_are_text(client, model):
    model.text = CALL
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = chat(client, **options).choices
        assert choice.message.content == CALL and choice.message.tool_calls is None
        assert "[weather]" not in model.prompts[-1]


MORE = [*TOOLS, {"type": "function", "function": {"name": "news", "strict": True}}]


def allowed(mode, *names, nested=True):
    """A ``tool_choice`` of some tools, as chat completions write it, or as responses do."""
    if nested:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": n} for n in names]}


def test_only_allowed_tools_are_shown_and_called(client, model):
    model.text = CALL
    (choice,) = chat(client, tools=MORE, tool_choice=allowed("auto", "weather")).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]
    assert "[weather]" in model.prompts[-1] and "[news]" not in model.prompts[-1]
    two = [*TOOLS, {"type": "function", "function": {"name": "news"}}]
    (choice,) = chat(client, tools=two, tool_choice=allowed("auto", "news")).choices
    assert choice.message.tool_calls is None and choice.message.content == CALL
    assert "[news]" in model.prompts[-1] and "[weather]" not in model.prompts[-1]


def test_allowed_tools_of_responses(client, model):
    model.text = CALL
    tools = [*FLAT, {"type": "function", "name": "news", "parameters": None, "strict": False}]
    choice = allowed("auto", "weather", nested=False)
    found = respond(client, tools=tools, tool_choice=choice)
    assert [item.name for item in found.output] == ["weather"]
    assert found.tool_choice.to_dict() == choice and len(found.tools) == 2
    assert "[news]" not in model.prompts[-1]


@pytest.mark.parametrize(
    ("param", "choice"),
    [
        ("tool_choice", allowed("auto", "weather", "sports")),
        ("tool_choice", allowed("required", "sports", nested=False)),
        ("tool_choice.allowed_tools.mode", allowed("none", "weather")),
        ("tool_choice.allowed_tools.tools", allowed("auto")),
        ("tool_choice.mode", allowed("always", "weather", nested=False)),
        ("tool_choice.mode", {"type": "allowed_tools", "tools": [{"type": "function", "name": "weather"}]}),
        ("tool_choice.allowed_tools", {"type": "allowed_tools"}),
        ("tool_choice.other", {**allowed("auto", "weather"), "other": 1}),
        ("tool_choice.tools[0].type", {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}),
        ("tool_choice.type", {"type": "custom", "name": "weather"}),
        ("tool_choice", 3),
    ],
    ids=str,
)
def test_wrong_choices_of_tools_are_refused(script, param, choice):
    for path, body in (
        ("chat/completions", {"messages": MESSAGES, "tools": TOOLS}),
        ("responses", {"input": "hi", "tools": FLAT}),
    ):
        reply = httpx.post(f"{script.api}/{path}", json={**body, "tool_choice": choice})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
        if "sports" in str(choice):
            assert "'sports'" in reply.json()["error"]["message"]


def test_results_of_calls_reach_the_template(client, model):
    model.text = CALL
    message = chat(client, tools=TOOLS).choices[0].message
    model.text = "Sunny."
    messages = [
        *MESSAGES,
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "24 C"},
    ]
    assert chat(client, messages=messages, tools=TOOLS).choices[0].message.content == "Sunny."
    assert "<tool_call>weather Turin</tool_call>" in model.prompts[-1] and "24 C" in model.prompts[-1]


def test_reasoning_is_apart(client, model):
    model.text = "<think>Hm.</think>\n\nYes."
    found = chat(client)
    message = found.choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("Yes.", "Hm.")
    assert found.usage.completion_tokens_details.reasoning_tokens > 0
    text = thought = ""
    for chunk in chat(client, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        thought += (delta.model_extra or {}).get("reasoning_content", "")
    assert (text, thought) == ("Yes.", "Hm.")


@pytest.mark.parametrize(
    "options",
    [{"reasoning_effort": "high"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}],
)
def test_reasoning_that_the_prompt_opens(client, model, options):
    model.text = "Hm.</think>Yes."
    message = chat(client, **options).choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("Yes.", "Hm.")
    assert model.prompts[-1].endswith("<think>\n")
    model.text = "Yes."
    assert chat(client, reasoning_effort="none").choices[0].message.content == "Yes."
    assert not model.prompts[-1].endswith("<think>\n")


def test_cut_answers_say_so(client, model):
    model.text, model.reason = CALL, "length"
    try:
        (choice,) = chat(client, tools=TOOLS).choices
        assert choice.finish_reason == "length" and len(choice.message.tool_calls) == 1
        response = client.responses.create(model="s", input="hi")
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    finally:
        model.reason = "stop"


def test_calls_need_a_template_that_shows_them(tiny):
    with running({"s": Scripted(tiny_model(tiny), "{{ messages[0].content }}")}) as server:
        body = {"messages": MESSAGES, "tools": TOOLS}
        reply = httpx.post(f"{server.api}/chat/completions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools"


# Responses.


def respond(client, **options):
    return client.responses.create(**{"model": "s", "input": "hi", **options})


def test_response_has_text(client, model):
    model.text = "Hello."
    found = respond(client, instructions="be brief", metadata={"a": "b"}, temperature=0.5, store=False)
    assert found.output_text == "Hello." and found.status == "completed" and found.object == "response"
    assert (found.metadata, found.temperature, found.store) == ({"a": "b"}, 0.5, False)
    assert found.usage.output_tokens == 1 and found.usage.total_tokens == found.usage.input_tokens + 1
    assert "system\nbe brief" in model.prompts[-1] and "user\nhi" in model.prompts[-1]


def test_response_has_reasoning_and_calls_in_order(client, model):
    model.text = f"<think>Hm.</think>I look.{CALL}"
    found = respond(client, tools=FLAT)
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    assert found.output[0].content[0].text == "Hm." and found.output_text == "I look."
    assert json.loads(found.output[2].arguments) == {"city": "Turin"}
    assert all(item.status == "completed" for item in found.output)


def test_items_of_a_response_can_be_sent_back(client, model):
    model.text = f"<think>Hm.</think>I look.{CALL}"
    first = respond(client, tools=FLAT)
    model.text = "Sunny."
    sent = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "24 C"},
    ]
    assert respond(client, input=sent, tools=FLAT).output_text == "Sunny."
    prompt = model.prompts[-1]
    assert "<think>Hm.</think>I look.<tool_call>weather Turin</tool_call><|im_end|>" in prompt
    assert "tool\n24 C" in prompt


def test_response_stream_builds_the_response(client, model):
    model.text = f"<think>Hm.</think>I look.{CALL}"
    with client.responses.stream(model="s", input="hi", tools=FLAT) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "I look." and [item.type for item in final.output] == [
        "reasoning", "message", "function_call",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "I look."


def test_empty_answer_is_an_empty_message(client, model):
    model.text = ""
    found = respond(client)
    assert found.output_text == "" and [item.type for item in found.output] == ["message"]
    (choice,) = chat(client).choices
    assert choice.message.content == ""


def test_response_has_logprobs(client, model):
    model.text = "Hello."
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    found = respond(client, **options)
    (entry,) = found.output[0].content[0].logprobs
    assert entry.logprob < 0 and len(entry.top_logprobs) == 2
    events = list(respond(client, stream=True, **options))
    assert [event.logprobs[0].logprob for event in events if event.type.endswith("text.delta")] == [
        entry.logprob
    ]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("input", {"input": []}),
        ("input[0].type", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
        ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("include[0]", {"include": ["file_search_call.results"]}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("reasoning.summary", {"reasoning": {"summary": "auto"}}),
        ("text.verbosity", {"text": {"verbosity": "low"}}),
        ("text.format.type", {"text": {"format": {"type": "grammar"}}}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("max_tokens", {"max_tokens": 3}),
    ],
    ids=str,
)
def test_wrong_fields_of_responses_are_refused(script, path, options):
    reply = httpx.post(f"{script.api}/responses", json={"input": "hi", **options})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == path
