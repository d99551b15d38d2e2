"""``/v1/responses``, without state: the conversation comes with each request."""

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
from vt_core.serve.common import Common
from vt_core.serve.conversation import Conversation
from vt_core.serve.engine import Engine, Job
from vt_core.serve.errors import ApiError, refused
from vt_core.serve.items import Event, OutputItems
from vt_core.serve.logprobs import MAX_TOP, chat_logprobs
from vt_core.serve.markup import Part, joined
from vt_core.serve.settings import Settings

_LOGPROBS = "message.output_text.logprobs"

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
        "input": _input,
        "instructions": fields.text,
        "max_output_tokens": fields.whole(1),
        "tools": fields.array(_tool, most=128),
        "tool_choice": conversation.tool_choice,
        "parallel_tool_calls": fields.flag,
        "text": _text,
        "reasoning": _EFFORT.read,
        "include": fields.array(fields.choice(_LOGPROBS)),
        "top_logprobs": fields.whole(0, MAX_TOP),
        "chat_template_kwargs": conversation.template_arguments,
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

    common: Common
    conversation: Conversation
    settings: Settings
    limit: int | None  #: most tokens of the answer
    top: int | None  #: alternatives in the log-probabilities; None: no log-probabilities
    one_call: bool  #: whether the answer may call one tool only
    echoed: Mapping[str, Any]  #: fields of the response that repeat the request's

    @classmethod
    def parse(cls, body: Any, settings: Settings) -> Responses:
        """Check a body.

        Raises:
            ApiError: a field cannot be served.
            OptionError: the sampler refuses a value.
        """
        given = FIELDS.read("", body)
        shared = Common.of(given, settings)
        shared.options.update(given.get("text", {}))
        wants = _LOGPROBS in given.get("include", ())
        if given.get("top_logprobs") and not wants:
            raise refused("top_logprobs", f"needs include to have {_LOGPROBS}")
        free = not given.get("text")
        tools = conversation.choose(given.get("tools", []), given.get("tool_choice"), free=free)
        effort = given.get("reasoning", {}).get("effort")
        several = given.get("parallel_tool_calls", True)
        echoed = {
            "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": several,
            "reasoning": {"effort": effort, "summary": None},
            "temperature": shared.options.get("temperature", 0.0),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_logprobs": given.get("top_logprobs", 0),
            "top_p": shared.options.get("top_p", 1.0),
        }
        return cls(
            shared,
            Conversation(
                messages_of(given["input"], given.get("instructions")),
                tools,
                given.get("chat_template_kwargs"),
                effort,
                free,
            ),
            settings,
            given.get("max_output_tokens"),
            given.get("top_logprobs", 0) if wants else None,
            not several,
            echoed,
        )

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
                yield _sse({**event, "sequence_number": number})
                number += 1

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""
        described = error.body()
        about = described["error"]
        flat = {name: about[name] for name in ("code", "message", "param")}
        return _sse({"type": "error", **flat, **described, "sequence_number": 0})

    async def _run(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[Event, None]:
        job, answer = await self._prepare(engine, task)
        engine.turnstile.check(1)
        head = self._head(name)
        yield {"type": "response.created", "response": {**head, "status": "in_progress", "output": []}}
        yield {"type": "response.in_progress", "response": {**head, "status": "in_progress", "output": []}}
        items = OutputItems(engine.id_length)
        parts: list[Part] = []
        async with aclosing(run_answers(engine, [job], [answer])) as pieces:
            async for _, more in pieces:
                if self.top is not None:
                    parts += more  # sent when their log-probabilities are known
                    continue
                for event in items.add(more):
                    yield event
        if self.top is not None:
            pair = job.ids, list(answer.finished.token_ids)
            (score,) = await engine.score([pair], task, self.top)
            items.logprobs = chat_logprobs(engine.model.tokenizer, score, self.top)["content"]
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
            "vt": common.own_facts([answer.finished]),
        }
        yield {"type": f"response.{status}", "response": response}

    async def _prepare(self, engine: Engine, task: str | None) -> tuple[Job, Answer]:
        model, markup = engine.model, engine.markup
        prompt = await asyncio.to_thread(self.conversation.prompt, model, markup)
        limit = common.check_prompt(model, len(prompt.ids), self.limit, "max_output_tokens", self.settings)
        (job,) = self.common.jobs([prompt.ids], 1, limit, task, **prompt.options)
        return job, Answer(prompt.reader(), one_call=self.one_call)

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


def _usage(answer: Answer) -> dict[str, Any]:
    usage = common.usage([answer.finished])
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": usage["total_tokens"],
    }


def _sse(event: Event) -> str:
    content = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {content}\n\n"
