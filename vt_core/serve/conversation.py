"""Messages and tools of a request, checked and put into the form that chat templates take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.decode.constraints import grammar_option
from vt_core.errors import VtError, shorten
from vt_core.model import Model
from vt_core.serve import fields
from vt_core.serve.errors import refused
from vt_core.serve.markup import THINK, CallFormat, Markup, PartReader

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Arguments of the template that are the server's own.
_RESERVED = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
)


def name(path: str, value: Any) -> str:
    """The name of a tool or of a schema."""
    if not _NAME.fullmatch(fields.text(path, value)):
        raise refused(path, f"is {shorten(value)}, but it must be 1 to 64 letters, digits, _, - and .")
    return str(value)


def content(path: str, value: Any) -> str:
    """A message's content: text, or parts of text, which are joined."""
    if isinstance(value, str):
        return fields.text(path, value)
    return "".join(fields.array(_text_part)(path, value))


def _text_part(path: str, value: Any) -> str:
    part = fields.mapping(path, value)
    if part.get("type") not in ("text", "input_text", "output_text"):
        raise refused(
            f"{path}.type",
            f"is {shorten(part.get('type'))}, but this server reads text only",
            "unsupported_value",
        )
    table = fields.Table(
        {"text": fields.text, "type": fields.text},
        harmless=("annotations", "logprobs", "prompt_cache_breakpoint"),
        required=("text",),
    )
    return str(table.read(path, value)["text"])


def arguments(path: str, value: Any) -> Any:
    """Arguments of an earlier call: templates take the object that the text stands for."""
    try:
        parsed = json.loads(fields.text(path, value))
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


_FUNCTION_CALL = fields.Table({"name": name, "arguments": arguments}, required=("name", "arguments"))
_TOOL_CALL = fields.Table(
    {"id": fields.text, "type": fields.choice("function"), "function": _FUNCTION_CALL.read},
    harmless=("index",),
    required=("function",),
)
_MESSAGE = fields.Table(
    {
        "role": fields.choice("system", "developer", "user", "assistant", "tool"),
        "content": content,
        "name": fields.text,
        "tool_calls": fields.array(_TOOL_CALL.read, most=128),
        "tool_call_id": fields.text,
        "reasoning_content": fields.text,
        "reasoning": fields.text,
    },
    harmless=("annotations",),
    neutral={"refusal": (), "audio": (), "function_call": ()},
    required=("role",),
)


def message(path: str, value: Any) -> dict[str, Any]:
    """A message of a chat."""
    found = _MESSAGE.read(path, value)
    calls = found.get("tool_calls")
    if calls is not None:
        if found["role"] != "assistant":
            raise refused(f"{path}.tool_calls", "goes with the role assistant only")
        found["tool_calls"] = [{"type": "function", **call} for call in calls]
    if "content" not in found:
        if found["role"] != "assistant":
            raise refused(f"{path}.content", "is required", "missing_field")
        found["content"] = ""
    return found


FUNCTION = fields.Table(
    {
        "name": name,
        "description": fields.text,
        "parameters": fields.mapping,
        "strict": fields.flag,
    },
    required=("name",),
)
_TOOL = fields.Table(
    {"type": fields.choice("function"), "function": FUNCTION.read}, required=("type", "function")
)


def tool(path: str, value: Any) -> dict[str, Any]:
    """A tool, as chat completions and chat templates describe it."""
    found = _TOOL.read(path, value)
    return described(f"{path}.function", found["function"])


def described(path: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of a function, as chat templates take it, and for :func:`choose` the path of ``strict``, where
    that is true.
    """
    function = {
        "name": found["name"],
        "description": found.get("description", ""),
        "parameters": found.get("parameters", {"type": "object", "properties": {}}),
    }
    strict = f"{path}.strict" if found.get("strict") else None
    return {"type": "function", "function": function, "strict": strict}


@dataclass(frozen=True)
class Choice:
    """What ``tool_choice`` says."""

    mode: str  #: ``none``, ``auto`` or ``required``
    names: Sequence[str] | None = None  #: of the tools that may be called; None: of all


_NAMED = fields.Table({"name": name}, required=("name",))
# Chat completions write a tool's name under ``function``, responses write it beside the type.
_NAMED_TOOL = fields.Table(
    {"type": fields.choice("function"), "function": _NAMED.read, "name": name}, required=("type",)
)
_MODE = fields.choice("none", "auto", "required")


def _named_tool(path: str, value: Any) -> str:
    """The name of a tool that is given by its type and name."""
    found = _NAMED_TOOL.read(path, value)
    chosen = found["function"]["name"] if "function" in found else found.get("name")
    if chosen is None:
        raise refused(f"{path}.function", "is required", "missing_field")
    return str(chosen)


_ALLOWED = fields.Table(
    {"mode": fields.choice("auto", "required"), "tools": fields.array(_named_tool, 1, 128)},
    required=("mode", "tools"),
)
_ALLOWED_FLAT = fields.Table({**_ALLOWED.used, "type": fields.text}, required=_ALLOWED.required)
# Chat completions write mode and tools in an object of their own, responses write them beside the type.
_ALLOWED_NESTED = fields.Table(
    {"type": fields.text, "allowed_tools": _ALLOWED.read}, required=("allowed_tools",)
)


def tool_choice(path: str, value: Any) -> Choice:
    """Whether tools may or must be called, and which."""
    if not isinstance(value, dict):
        return Choice(_MODE(path, value))
    kind = value.get("type")
    if kind != "allowed_tools":
        fields.choice("function", "allowed_tools")(f"{path}.type", kind)
        return Choice("required", [_named_tool(path, value)])
    if "mode" in value or "tools" in value:
        allowed = _ALLOWED_FLAT.read(path, value)
    else:
        allowed = _ALLOWED_NESTED.read(path, value)["allowed_tools"]
    return Choice(allowed["mode"], allowed["tools"])


@dataclass(frozen=True)
class Tools:
    """The tools of a request."""

    offered: Sequence[dict[str, Any]] = ()  #: that the template describes
    demanded: Sequence[dict[str, Any]] = ()  #: of these, those that one must be called of; none: no call must


def choose(tools: Sequence[dict[str, Any]], choice: Choice | None, *, free: bool) -> Tools:
    """What a request's tools and its choice mean.

    Args:
        tools: as :func:`described` gives them.
        choice: as :func:`tool_choice` gives it; None: the request does not say.
        free: whether the answer's text is free, and not held to a format.

    Raises:
        ApiError: the choice does not go with the tools, or a tool's strictness cannot be kept.
    """
    if not tools and choice is not None and choice.mode != "none":
        raise refused("tool_choice", "needs tools")
    choice = choice or Choice("auto")
    if choice.mode == "none" or not tools:
        return Tools()
    if not free:
        raise refused("tools", "do not go with a format of the answer, unless tool_choice is none")
    by_name = {tool["function"]["name"]: tool for tool in tools}
    names = by_name if choice.names is None else choice.names
    unknown = next((name for name in names if name not in by_name), None)
    if unknown is not None:
        raise refused("tool_choice", f"names {shorten(unknown)}, which is not among the tools")
    allowed = [tool for tool in tools if tool["function"]["name"] in names]
    if choice.mode == "required":
        # The answer is held to a call of these. The template may show the others: the prompt, and what is
        # cached of it, stays the same whichever are allowed.
        return Tools([_for_template(tool) for tool in tools], [_for_template(tool) for tool in allowed])
    for tool in allowed:
        if tool["strict"]:
            raise refused(
                tool["strict"],
                "is kept only where a call is demanded, by a tool_choice of required or of a name",
                "unsupported_value",
            )
    # Nothing holds a free answer to the allowed tools, so the template does not show the others.
    return Tools([_for_template(tool) for tool in allowed])


def _for_template(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool without what is not for the template."""
    return {"type": "function", "function": tool["function"]}


#: How much to reason.
effort = fields.choice("none", "minimal", "low", "medium", "high", "xhigh", "max")


def template_arguments(path: str, value: Any) -> dict[str, Any]:
    """Variables of the chat template."""
    for key in fields.mapping(path, value):
        if key in _RESERVED:
            raise refused(f"{path}.{key}", "is set by the server and cannot be given here")
    return dict(value)


@dataclass(frozen=True)
class Prompt:
    """A conversation that is ready to be answered."""

    ids: list[int]  #: full ids
    options: dict[str, Any]  #: of :meth:`vt_core.Model.stream` that it demands
    reader: Callable[[], PartReader]  #: makes what reads an answer


@dataclass(frozen=True)
class Conversation:
    """What the chat template makes a prompt of."""

    messages: Sequence[dict[str, Any]]  #: at least one
    tools: Tools = Tools()  #: that may or must be called
    arguments: Mapping[str, Any] | None = None  #: variables of the template
    effort: str | None = None  #: how much to reason
    free: bool = True  #: whether the answer's text is free, and not held to a format

    def prompt(self, model: Model, markup: Markup) -> Prompt:
        """The prompt of a model.

        Raises:
            ApiError: the model's template cannot take the tools or the effort.
            PromptError: the template refuses the messages.
            ConstraintError: the parameters of a demanded tool cannot be enforced.
        """
        template, calls = markup.template or "", markup.calls
        if markup.template is None:
            raise refused("messages", "need a chat template, which this model lacks; use /v1/completions")
        given = dict(self.arguments or {})
        if self.tools.offered:
            if calls is None:
                raise refused(
                    "tools",
                    "cannot be used with this model: its chat template shows no known way to call them",
                    "unsupported_value",
                )
            given["tools"] = list(self.tools.offered)
        if self.effort is not None:
            given |= self._effort(template)
        messages = [self._plain(message, template) for message in self.messages]
        ids = model.encode(messages, template_arguments=given).tolist()
        reasons = opens_reasoning(model, markup, ids)
        options, begun = {}, ""
        if self.tools.demanded:
            assert calls is not None
            if calls.forced is None:
                raise refused("tool_choice", "is 'none' or 'auto' for this model, which writes no JSON")
            begun = calls.forced
            options = schema_option("tools", _calls_schema(self.tools.demanded, calls))
        if reasons and (self.tools.demanded or not self.free):
            # What follows is held to a format, so no reasoning comes before it.
            reasons, begun = False, f"{THINK[1]}\n\n{begun}"
        ids += model.tokenizer.encode(begun, special=False).tolist()
        names = [tool["function"]["name"] for tool in self.tools.offered]
        return Prompt(ids, options, lambda: PartReader(markup, names, reasons, bool(self.tools.demanded)))

    def _effort(self, template: str) -> dict[str, Any]:
        if "reasoning_effort" in template:
            return {"reasoning_effort": self.effort}
        if "enable_thinking" in template:
            return {"enable_thinking": self.effort != "none"}
        raise refused("reasoning_effort", "means nothing to this model's chat template", "unsupported_value")

    @staticmethod
    def _plain(message: Mapping[str, Any], template: str) -> dict[str, Any]:
        plain = dict(message)
        # Few templates know developers; in OpenAI's older models their messages are the system's.
        if plain["role"] == "developer" and "developer" not in template:
            plain["role"] = "system"
        return plain


def opens_reasoning(model: Model, markup: Markup, ids: Sequence[int]) -> bool:
    """Whether a prompt ends within reasoning, as some chat templates make it."""
    if not markup.thinks:
        return False
    tail = list(ids[-16:])
    markers = [model.tokenizer.id_of(marker) for marker in THINK]
    for token in reversed(tail):
        if token in markers:
            return token == markers[0]
    return model.tokenizer.decode(tail).rstrip().endswith(THINK[0])


def _calls_schema(tools: Sequence[Mapping[str, Any]], calls: CallFormat) -> dict[str, Any]:
    """The JSON schema of one call of one of some tools."""
    each: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                calls.forced_key: tool["function"]["parameters"],
            },
            "required": ["name", calls.forced_key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = each[0] if len(each) == 1 else {"anyOf": each}
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": 1} if calls.forced_list else schema


def schema_option(path: str, schema: Any) -> dict[str, Any]:
    """The option of :meth:`vt_core.Model.stream` that holds an answer to a JSON schema.

    Raises:
        ApiError: the schema cannot be enforced.
    """
    try:
        grammar_option(json_schema=schema)
    except VtError as error:
        raise refused(path, f"cannot be enforced: {error}", "unsupported_value") from error
    return {"json_schema": schema}


_JSON_SCHEMA = fields.Table(
    {"name": name, "schema": fields.mapping, "strict": fields.flag},
    harmless=("description",),
    required=("schema",),
)
_FORMAT = fields.Table(
    {"type": fields.choice("text", "json_object", "json_schema"), "json_schema": _JSON_SCHEMA.read},
    required=("type",),
)


def response_format(path: str, value: Any) -> dict[str, Any]:
    """The options of :meth:`vt_core.Model.stream` that a chat's response format asks for."""
    found = _FORMAT.read(path, value)
    if found["type"] == "text":
        return {}
    if found["type"] == "json_object":
        return schema_option(path, {"type": "object"})
    if "json_schema" not in found:
        raise refused(f"{path}.json_schema", "is required", "missing_field")
    return schema_option(path, found["json_schema"]["schema"])
