"""``/v1/responses``, without state: the conversation comes with each request."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vt_core.serve import common, conversation, envelope, fields, turn
from vt_core.serve.answers import Answer, run_answers
from vt_core.serve.common import Common
from vt_core.serve.engine import Engine
from vt_core.serve.envelope import sse
from vt_core.serve.errors import ApiError, refused
from vt_core.serve.items import Event, OutputItems
from vt_core.serve.markup import Part, joined
from vt_core.serve.settings import Settings
from vt_core.serve.turn import Turn

_LOGPROBS = "message.output_text.logprobs"
#: Asked for by clients of servers that hide reasoning; here the reasoning comes as text.
_ENCRYPTED = "reasoning.encrypted_content"

#: Fields of the sampler that a response repeats, and what they are when nobody set them.
_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
#: Fields of a tool that a response repeats also where the request left them out.
_TOOL_DEFAULTS = {"description": None, "parameters": None, "strict": None}

_FUNCTION = fields.Table(
    {**conversation.FUNCTION.used, "type": fields.choice("function")}, required=("type", "name")
)


def _tool(path: str, value: Any) -> dict[str, Any]:
    return conversation.described(path, _FUNCTION.read(path, value))


_MESSAGE = fields.Table(
    {
        "type": fields.choice("message"),
        "role": fields.choice("system", "developer", "user", "assistant"),
        "content": conversation.content,
    },
    harmless=("id", "status", "phase"),
    required=("role", "content"),
)
_CALL = fields.Table(
    {
        "type": fields.text,
        "call_id": fields.text,
        "name": conversation.name,
        "arguments": conversation.arguments,
    },
    harmless=("id", "status"),
    required=("call_id", "name", "arguments"),
)
_OUTPUT = fields.Table(
    {"type": fields.text, "call_id": fields.text, "output": conversation.content},
    harmless=("id", "status"),
    required=("call_id", "output"),
)
_REASONING_TEXT = fields.Table(
    {"type": fields.choice("reasoning_text"), "text": fields.text}, required=("type", "text")
)
_REASONING = fields.Table(
    {"type": fields.text, "content": fields.array(_REASONING_TEXT.read)},
    harmless=("id", "status", "summary"),
)
_ITEMS = {
    "message": _MESSAGE,
    "function_call": _CALL,
    "function_call_output": _OUTPUT,
    "reasoning": _REASONING,
}


def _item(path: str, value: Any) -> dict[str, Any]:
    kind = fields.mapping(path, value).get("type", "message")
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise refused(f"{path}.type", f"is none of {', '.join(_ITEMS)}", "unsupported_value")
    return {"type": kind, **_ITEMS[kind].read(path, value)}


def _input(path: str, value: Any) -> list[dict[str, Any]]:
    """The input as items."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": fields.text(path, value)}]
    return fields.array(_item, 1)(path, value)


def messages_of(items: Sequence[Mapping[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """Items as the messages of a chat: reasoning, text and calls of one turn become one message."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    turn: dict[str, Any] | None = None  # the assistant's, which the next items may add to
    for item in items:
        kind = item["type"]
        if kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
            turn = None
            continue
        if kind == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": item["content"]})
            turn = None
            continue
        if turn is None or (kind != "function_call" and turn["content"]):
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        if kind == "message":
            turn["content"] = item["content"]
        elif kind == "reasoning":
            turn["reasoning_content"] = "".join(part["text"] for part in item.get("content", []))
        else:
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
    return messages


def _text(path: str, value: Any) -> dict[str, Any]:
    """The options of :meth:`vt_core.Model.stream` that ``text`` asks for."""
    options: dict[str, Any] = fields.Table({"format": _format}, neutral={"verbosity": ("medium",)}).read(
        path, value
    )
    found: dict[str, Any] = options.get("format", {})
    return found


def _format(path: str, value: Any) -> dict[str, Any]:
    kind = fields.mapping(path, value).get("type")
    if kind != "json_schema":
        return conversation.response_format(path, value)
    rest = {name: item for name, item in value.items() if name != "type"}
    return conversation.response_format(path, {"type": kind, "json_schema": rest})


_EFFORT = fields.Table({"effort": conversation.effort}, neutral={"summary": (), "generate_summary": ()})

FIELDS = fields.Table(
    used={
        **common.COMMON,
        **turn.FIELDS,
        "input": _input,
        "instructions": fields.text,
        "max_output_tokens": fields.whole(1),
        "tools": fields.array(_tool, most=128),
        "text": _text,
        "reasoning": _EFFORT.read,
        "include": fields.array(fields.choice(_LOGPROBS, _ENCRYPTED)),
    },
    harmless=common.HARMLESS | {"stream_options", "max_tool_calls"},
    neutral={
        "background": (False,),
        "truncation": ("disabled",),
        **dict.fromkeys(
            ("previous_response_id", "conversation", "prompt", "context_management", "moderation", "image"),
            (),
        ),
    },
    required=("input",),
)


@dataclass(frozen=True)
class Responses:
    """A checked request for a response."""

    turn: Turn
    echoed: Mapping[str, Any]  #: fields of the response that repeat the request's

    @classmethod
    def parse(cls, body: Any, settings: Settings) -> Responses:
        """Check a body.

        Raises:
            ApiError: a field cannot be served.
            OptionError: the sampler refuses a value.
        """
        given = FIELDS.read("", body)
        effort = given.get("reasoning", {}).get("effort")
        shared = Common.of(given, settings, "max_output_tokens")
        found = Turn.of(
            given,
            shared,
            messages_of(given["input"], given.get("instructions")),
            format_options=given.get("text", {}),
            effort=effort,
            logprobs=_LOGPROBS in given.get("include", ()),
            logprobs_field=f"include to have {_LOGPROBS}",
        )
        echoed = {
            "instructions": given.get("instructions"),
            "max_output_tokens": shared.limit,
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": not found.one_call,
            "reasoning": {"effort": effort, "summary": None},
            "text": {"format": _echoed_format(body.get("text") or {})},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [{**_TOOL_DEFAULTS, **tool} for tool in body.get("tools") or []],
            "top_logprobs": given.get("top_logprobs", 0),
            **{name: shared.options.get(name, neutral) for name, neutral in _SAMPLING.items()},
            **{name: body.get(name) for name in ("safety_identifier", "prompt_cache_key")},
        }
        return cls(found, echoed)

    @property
    def common(self) -> Common:
        """The common fields."""
        return self.turn.common

    async def reply(self, engine: Engine, name: str, task: str | None) -> dict[str, Any]:
        """The whole response."""
        response: dict[str, Any] = {}
        async with aclosing(self._run(engine, name, task)) as events:
            async for event in events:
                response = event.get("response", response)
        return response

    async def events(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[str, None]:
        """The response as server-sent events."""
        number = 0
        async with aclosing(self._run(engine, name, task)) as events:
            async for event in events:
                yield sse({**event, "sequence_number": number}, event["type"])
                number += 1

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""
        described = error.body()
        about = described["error"]
        flat = {name: about[name] for name in ("code", "message", "param")}
        return sse({"type": "error", **flat, **described, "sequence_number": 0}, "error")

    async def _run(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[Event, None]:
        jobs, answers = await self.turn.prepare(engine, task)
        (answer,) = answers
        engine.turnstile.check(1)
        head = self._head(name)
        yield {"type": "response.created", "response": {**head, "status": "in_progress", "output": []}}
        yield {"type": "response.in_progress", "response": {**head, "status": "in_progress", "output": []}}
        items = OutputItems(engine.id_length)
        parts: list[Part] = []
        async with aclosing(run_answers(engine, jobs, answers)) as pieces:
            async for _, more in pieces:
                if self.turn.top is not None:
                    parts += more  # sent when their log-probabilities are known
                    continue
                for event in items.add(more):
                    yield event
        (logprobs,) = await self.turn.logprobs(engine, jobs, answers, task)
        if logprobs is not None:
            items.logprobs = logprobs["content"]
            for event in items.add(joined(parts)):
                yield event
        cut = answer.finished.finish_reason == "length"
        for event in items.finish(cut):
            yield event
        status = "incomplete" if cut else "completed"
        response = {
            **head,
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": items.output,
            "usage": _usage(answer),
            "vt": envelope.own_facts([answer.finished]),
        }
        yield {"type": f"response.{status}", "response": response}

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "model": name,
            **self.echoed,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "max_tool_calls": None,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None,
        }


def _echoed_format(text: Mapping[str, Any]) -> dict[str, Any]:
    """The format of the answer as a response repeats it."""
    asked = text.get("format") or {"type": "text"}
    return {"name": "", "description": None, "strict": False, **asked} if "schema" in asked else asked


def _usage(answer: Answer) -> dict[str, Any]:
    usage = envelope.usage([answer.finished])
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": usage["total_tokens"],
    }
