"""Messages and tools of a request, checked and put into the form that chat templates take."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.decode.options import request_options
from vt_core.errors import shorten
from vt_core.model import Model
from vt_core.serve import fields
from vt_core.serve.errors import refused
from vt_core.serve.markup import Markup

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


def _not_strict(path: str, value: Any) -> bool:
    if fields.flag(path, value):
        raise refused(path, "is supported as false only", "unsupported_value")
    return False


FUNCTION = fields.Table(
    {
        "name": name,
        "description": fields.text,
        "parameters": fields.mapping,
        "strict": _not_strict,
    },
    required=("name",),
)
_TOOL = fields.Table(
    {"type": fields.choice("function"), "function": FUNCTION.read}, required=("type", "function")
)


def tool(path: str, value: Any) -> dict[str, Any]:
    """A tool, as chat completions and chat templates describe it."""
    found = _TOOL.read(path, value)
    return {"type": "function", "function": plain_function(found["function"])}


def plain_function(found: Mapping[str, Any]) -> dict[str, Any]:
    """A function's description for a chat template."""
    return {
        "name": found["name"],
        "description": found.get("description", ""),
        "parameters": found.get("parameters", {"type": "object", "properties": {}}),
    }


def tool_choice(path: str, value: Any) -> str:
    """Whether tools may be called: none or auto."""
    if value in ("none", "auto"):
        return str(value)
    if isinstance(value, str):
        fields.choice("none", "auto", "required")(path, value)
    raise refused(path, "is supported as 'none' or 'auto' only", "unsupported_value")


#: How much to reason.
effort = fields.choice("none", "minimal", "low", "medium", "high", "xhigh", "max")


def template_arguments(path: str, value: Any) -> dict[str, Any]:
    """Variables of the chat template."""
    for key in fields.mapping(path, value):
        if key in _RESERVED:
            raise refused(f"{path}.{key}", "is set by the server and cannot be given here")
    return dict(value)


@dataclass(frozen=True)
class Conversation:
    """What the chat template makes a prompt of."""

    messages: Sequence[dict[str, Any]]  #: at least one
    tools: Sequence[dict[str, Any]] = ()  #: that may be called
    arguments: Mapping[str, Any] | None = None  #: variables of the template
    effort: str | None = None  #: how much to reason

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools."""
        return [tool["function"]["name"] for tool in self.tools]

    def encode(self, model: Model, markup: Markup) -> list[int]:
        """The prompt, full ids.

        Raises:
            ApiError: the model's template cannot take the tools or the effort.
            PromptError: the template refuses the messages.
        """
        template = markup.template or ""
        if markup.template is None:
            raise refused("messages", "need a chat template, which this model lacks; use /v1/completions")
        given = dict(self.arguments or {})
        if self.tools:
            if markup.calls is None:
                raise refused(
                    "tools",
                    "cannot be used with this model: its chat template shows no known way to call them",
                    "unsupported_value",
                )
            given["tools"] = list(self.tools)
        if self.effort is not None:
            given |= self._effort(template)
        messages = [self._plain(message, template) for message in self.messages]
        return [int(token) for token in model.encode(messages, template_arguments=given)]

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


def schema_option(path: str, schema: Any) -> dict[str, Any]:
    """The option of :meth:`vt_core.Model.stream` that holds an answer to a JSON schema.

    Raises:
        ApiError: this version cannot.
        OptionError: the schema cannot be used.
    """
    if "json_schema" not in request_options.__annotations__:
        raise refused(path, "is supported with type 'text' only", "unsupported_value")
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
