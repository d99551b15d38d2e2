"""``/v1/chat/completions``."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vt_core.serve import common, conversation, envelope, fields, turn
from vt_core.serve.answers import Answer, run_answers
from vt_core.serve.calls import Call, call_id
from vt_core.serve.common import Common
from vt_core.serve.engine import Engine
from vt_core.serve.envelope import Envelope, sse
from vt_core.serve.errors import ApiError
from vt_core.serve.markup import Part, Reasoning, Text
from vt_core.serve.settings import Settings
from vt_core.serve.turn import Turn

FIELDS = fields.Table(
    used={
        **common.COMMON,
        **common.CHOICES,
        **turn.FIELDS,
        "messages": fields.array(conversation.message, 1),
        "max_tokens": fields.whole(1),
        "max_completion_tokens": fields.whole(1),
        "logprobs": fields.flag,
        "tools": fields.array(conversation.tool, most=128),
        "response_format": conversation.response_format,
        "reasoning_effort": conversation.effort,
    },
    harmless=common.HARMLESS | {"prediction"},
    neutral={
        "modalities": (["text"],),
        "verbosity": ("medium",),
        **dict.fromkeys(("audio", "function_call", "functions", "moderation", "web_search_options"), ()),
    },
    required=("messages",),
)


@dataclass(frozen=True)
class Chat:
    """A checked request for a chat completion."""

    turn: Turn

    @classmethod
    def parse(cls, body: Any, settings: Settings) -> Chat:
        """Check a body.

        Raises:
            ApiError: a field cannot be served.
            OptionError: the sampler refuses a value.
        """
        given = FIELDS.read("", body)
        return cls(
            Turn.of(
                given,
                Common.of(given, settings, "max_completion_tokens", "max_tokens"),
                given["messages"],
                format_options=given.get("response_format", {}),
                effort=given.get("reasoning_effort"),
                logprobs=given.get("logprobs", False),
                logprobs_field="logprobs to be true",
            )
        )

    @property
    def common(self) -> Common:
        """The common fields."""
        return self.turn.common

    async def reply(self, engine: Engine, name: str, task: str | None) -> dict[str, Any]:
        """The whole response."""
        jobs, answers = await self.turn.prepare(engine, task)
        async with aclosing(run_answers(engine, jobs, answers)) as pieces:
            async for _ in pieces:
                pass
        logprobs = await self.turn.logprobs(engine, jobs, answers, task)
        choices = [
            {
                "index": index,
                "message": _message(answer, engine.id_length),
                "logprobs": scored,
                "finish_reason": answer.finish_reason,
            }
            for index, (answer, scored) in enumerate(zip(answers, logprobs, strict=True))
        ]
        results = [answer.finished for answer in answers]
        return Envelope("chat.completion", "chatcmpl", name, engine).whole(choices, _usage(answers), results)

    async def events(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[str, None]:
        """The response as server-sent events."""
        jobs, answers = await self.turn.prepare(engine, task)
        outer = Envelope("chat.completion.chunk", "chatcmpl", name, engine, self.common.shows_usage)
        engine.turnstile.check(len(jobs))
        for index in range(len(jobs)):
            yield outer.event(index, {"delta": {"role": "assistant", "content": ""}})
        async with aclosing(run_answers(engine, jobs, answers)) as pieces:
            async for index, parts in pieces:
                answer = answers[index]
                if self.turn.top is None:
                    calls = len(answer.calls) - sum(isinstance(part, Call) for part in parts)
                    for delta in _deltas(parts, calls, engine.id_length):
                        yield outer.event(index, {"delta": delta})
                if answer.result is None:
                    continue
                if self.turn.top is not None:
                    (scored,) = await self.turn.logprobs(engine, [jobs[index]], [answer], task)
                    delta = _as_delta(_message(answer, engine.id_length))
                    yield outer.event(index, {"delta": delta}, logprobs=scored)
                yield outer.last(index, {"delta": {}}, answer.finish_reason, answer.result)
        for event in outer.end(_usage(answers)):
            yield event

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""
        return sse(error.body())


def _usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """The usage of the answers to one prompt."""
    reasoning = sum(answer.reasoning_tokens for answer in answers)
    return envelope.usage([answer.finished for answer in answers], len(answers), reasoning)


def _tool_call(call: Call, id_length: int) -> dict[str, Any]:
    return {
        "id": call_id(id_length),
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }


def _message(answer: Answer, id_length: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [_tool_call(call, id_length) for call in answer.calls]
    return message


def _as_delta(message: Mapping[str, Any]) -> dict[str, Any]:
    """A whole message as one piece of a stream."""
    delta = {name: value for name, value in message.items() if name not in ("role", "refusal")}
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(delta["tool_calls"])]
    return delta


def _deltas(parts: Sequence[Part], calls: int, id_length: int) -> list[dict[str, Any]]:
    """Pieces of a stream; ``calls``: calls before these parts."""
    deltas: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            deltas.append({"content": part.text})
        elif isinstance(part, Reasoning):
            deltas.append({"reasoning_content": part.text})
        else:
            deltas.append({"tool_calls": [{"index": calls, **_tool_call(part, id_length)}]})
            calls += 1
    return deltas
