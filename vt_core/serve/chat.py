"""``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vt_core.serve import common, conversation, fields
from vt_core.serve.answers import Answer, run_answers
from vt_core.serve.calls import Call
from vt_core.serve.common import Common
from vt_core.serve.conversation import Conversation
from vt_core.serve.engine import Engine, Job
from vt_core.serve.errors import ApiError, refused
from vt_core.serve.logprobs import MAX_TOP, chat_logprobs
from vt_core.serve.markup import Reasoning, Text
from vt_core.serve.settings import Settings

FIELDS = fields.Table(
    used={
        **common.COMMON,
        "messages": fields.array(conversation.message, 1),
        "max_tokens": fields.whole(1),
        "max_completion_tokens": fields.whole(1),
        "n": fields.whole(1, 64),
        "stop": fields.stops,
        "stream_options": common.STREAM_OPTIONS,
        "logprobs": fields.flag,
        "top_logprobs": fields.whole(0, MAX_TOP),
        "tools": fields.array(conversation.tool, most=128),
        "tool_choice": conversation.tool_choice,
        "parallel_tool_calls": fields.flag,
        "response_format": conversation.response_format,
        "reasoning_effort": conversation.effort,
        "chat_template_kwargs": conversation.template_arguments,
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

    common: Common
    conversation: Conversation
    settings: Settings
    n: int
    limit: int | None  #: most tokens of an answer
    limit_name: str  #: the field that says so
    usage: bool  #: whether a stream ends with the usage
    top: int | None  #: alternatives in the log-probabilities; None: no log-probabilities
    one_call: bool  #: whether an answer may call one tool only

    @classmethod
    def parse(cls, body: Any, settings: Settings) -> Chat:
        """Check a body.

        Raises:
            ApiError: a field cannot be served.
            OptionError: the sampler refuses a value.
        """
        given = FIELDS.read("", body)
        shared = Common.of(given, settings)
        shared.options.update(given.get("response_format", {}))
        names = ("max_completion_tokens", "max_tokens")
        limits = {name: given[name] for name in names if name in given}
        if len(set(limits.values())) > 1:
            raise refused("max_tokens", "and max_completion_tokens differ; give one of them")
        wants = given.get("logprobs", False)
        if given.get("top_logprobs") and not wants:
            raise refused("top_logprobs", "needs logprobs to be true")
        free = not given.get("response_format")
        tools = conversation.choose(given.get("tools", []), given.get("tool_choice"), free=free)
        return cls(
            shared,
            Conversation(
                given["messages"],
                tools,
                given.get("chat_template_kwargs"),
                given.get("reasoning_effort"),
                free,
            ),
            settings,
            given.get("n", 1),
            next(iter(limits.values()), None),
            next(iter(limits), "max_tokens"),
            given.get("stream_options", {}).get("include_usage", False),
            given.get("top_logprobs", 0) if wants else None,
            not given.get("parallel_tool_calls", True),
        )

    async def prepare(self, engine: Engine, task: str | None) -> tuple[list[Job], list[Answer]]:
        """The jobs of this request and their empty answers."""
        model, markup = engine.model, engine.markup
        prompt = await asyncio.to_thread(self.conversation.prompt, model, markup)
        limit = common.check_prompt(model, len(prompt.ids), self.limit, self.limit_name, self.settings)
        answers = [Answer(prompt.reader(), one_call=self.one_call) for _ in range(self.n)]
        return self.common.jobs([prompt.ids], self.n, limit, task, **prompt.options), answers

    async def reply(self, engine: Engine, name: str, task: str | None) -> dict[str, Any]:
        """The whole response."""
        jobs, answers = await self.prepare(engine, task)
        async with aclosing(run_answers(engine, jobs, answers)) as pieces:
            async for _ in pieces:
                pass
        scores = await self._scores(engine, jobs, answers, task)
        results = [answer.finished for answer in answers]
        id_length = engine.id_length
        return {
            **_head("chat.completion", name, engine.fingerprint),
            "choices": [
                {
                    "index": index,
                    "message": _message(answer, id_length),
                    "logprobs": logprobs,
                    "finish_reason": answer.finish_reason,
                }
                for index, (answer, logprobs) in enumerate(zip(answers, scores, strict=True))
            ],
            "usage": self._usage(answers),
            "vt": common.own_facts(results),
        }

    async def events(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[str, None]:
        """The response as server-sent events."""
        jobs, answers = await self.prepare(engine, task)
        head = _head("chat.completion.chunk", name, engine.fingerprint)
        usage: dict[str, Any] = {"usage": None} if self.usage else {}

        def event(index: int, delta: Mapping[str, Any], **more: Any) -> str:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            facts = {"vt": choice.pop("vt")} if "vt" in choice else {}
            return sse({**head, "choices": [choice], **usage, **facts})

        engine.turnstile.check(len(jobs))
        for index in range(self.n):
            yield event(index, {"role": "assistant", "content": ""})
        async with aclosing(run_answers(engine, jobs, answers)) as pieces:
            async for index, parts in pieces:
                answer = answers[index]
                if self.top is None:
                    calls = len(answer.calls) - sum(isinstance(part, Call) for part in parts)
                    for delta in _deltas(parts, calls, engine.id_length):
                        yield event(index, delta)
                if answer.result is not None:
                    if self.top is not None:
                        # The log-probabilities are exact only once all tokens are known.
                        (scored,) = await self._scores(engine, [jobs[index]], [answer], task)
                        message = _message(answer, engine.id_length)
                        yield event(index, _as_delta(message), logprobs=scored)
                    yield event(
                        index, {}, finish_reason=answer.finish_reason, vt=common.own_facts([answer.finished])
                    )
        if self.usage:
            yield sse({**head, "choices": [], "usage": self._usage(answers)})
        yield DONE

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""
        return sse(error.body())

    def _usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        reasoning = sum(answer.reasoning_tokens for answer in answers)
        return common.usage([answer.finished for answer in answers], self.n, reasoning)

    async def _scores(
        self, engine: Engine, jobs: Sequence[Job], answers: Sequence[Answer], task: str | None
    ) -> list[dict[str, Any] | None]:
        """Log-probabilities of answers; None each where nobody asked."""
        if self.top is None:
            return [None] * len(answers)
        pairs = [
            (job.ids, list(answer.finished.token_ids)) for job, answer in zip(jobs, answers, strict=True)
        ]
        scores = await engine.score(pairs, task, self.top)
        return [chat_logprobs(engine.model.tokenizer, score, self.top) for score in scores]


DONE = "data: [DONE]\n\n"


def sse(value: Any) -> str:
    """A server-sent event of a JSON value."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def call_id(length: int) -> str:
    """A new id for a call of a tool; some templates demand 9 letters and digits."""
    return secrets.token_hex(length)[:9] if length == 9 else f"call_{secrets.token_hex(length // 2)}"


def _head(kind: str, model: str, fingerprint: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


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


def _deltas(parts: Sequence[Text | Reasoning | Call], calls: int, id_length: int) -> list[dict[str, Any]]:
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
