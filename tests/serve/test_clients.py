"""Libraries that use OpenAI's client, against a running server. They demand an older ``openai`` than
other tests use, so they are not installed with the rest.
"""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from tests.serve.running import running, tiny_model
from tests.serve.scripted import TEMPLATE, Scripted
from tests.serve.test_tools import CALL
from vt_core.vocab.chat_template import ChatTemplates

MESSAGES = [{"role": "user", "content": "the cat"}]


class Animal(BaseModel):
    """An animal."""

    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def clients(tiny):
    """A server of ``free``, which writes anything, and of ``scripted``, which says what a test wants."""
    pytest.importorskip("llguidance")
    free = tiny_model(tiny)
    free.tokenizer.templates = ChatTemplates({"default": TEMPLATE})
    with running({"free": free, "scripted": Scripted(tiny_model(tiny))}) as server:
        yield server


@pytest.mark.parametrize("mode", ["TOOLS", "JSON", "JSON_SCHEMA"])
def test_instructor_gets_an_object(clients, mode):
    instructor = pytest.importorskip("instructor")
    import openai

    client = instructor.from_openai(
        openai.OpenAI(base_url=clients.api, api_key="none"), mode=instructor.Mode[mode]
    )
    if mode == "JSON":  # it describes the schema, and asks for any object
        clients.models["scripted"].text = '{"kind": "dog", "legs": 4}'
    found = client.chat.completions.create(
        model="scripted" if mode == "JSON" else "free",
        messages=MESSAGES,
        response_model=Animal,
        max_retries=0,
        max_tokens=40 if mode == "JSON" else 80,
    )
    assert isinstance(found, Animal)


@pytest.fixture
def chat(clients):
    langchain = pytest.importorskip("langchain_openai")

    def make(model, **options):
        return langchain.ChatOpenAI(model=model, base_url=clients.api, api_key="none", **options)

    return make


def test_langchain_invokes_and_streams(clients, chat):
    expected = clients.models["free"].generate(MESSAGES, max_tokens=12).text
    model = chat("free", max_tokens=12)
    assert model.invoke("the cat").content == expected
    assert "".join(chunk.content for chunk in model.stream("the cat")) == expected
    usage = model.invoke("the cat").usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_an_object(chat, method):
    model = chat("free", max_tokens=80).with_structured_output(Animal, method=method)
    assert isinstance(model.invoke("the cat"), Animal)


def test_langchain_binds_tools(clients, chat):
    def weather(city: Literal["Turin"]) -> str:
        """The weather of a city."""

    clients.models["scripted"].text = f"I look.{CALL}"
    message = chat("scripted", max_tokens=80).bind_tools([weather]).invoke("hi")
    assert message.content == "I look."
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("weather", {"city": "Turin"})]
    forced = chat("free", max_tokens=80).bind_tools([weather], tool_choice="any", strict=True).invoke("hi")
    assert [call["name"] for call in forced.tool_calls] == ["weather"]


def test_langchain_uses_responses(clients, chat):
    expected = clients.models["free"].generate(MESSAGES, max_tokens=12).text
    assert chat("free", max_tokens=12, use_responses_api=True).invoke("the cat").text == expected
