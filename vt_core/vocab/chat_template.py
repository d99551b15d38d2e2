"""Chat templates: which one a conversation takes, and its rendering as in transformers.

Templates come with the model and are programs. They run in transformers' sandbox, which keeps them away from
Python, and within limits on time and size, which the sandbox lacks: see `_Meter`.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vt_core.errors import PromptError, TokenizerError, shorten
from vt_core.files.json_files import read_text

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Message = Mapping[str, Any]  #: a chat message: ``{"role": "user", "content": "..."}``

DEFAULT = "default"
TOOL_USE = "tool_use"

#: Longest template in bytes; the longest in use have about 30,000.
MAX_TEMPLATE_BYTES = 1 << 20
#: Seconds that a template may run. Real ones take milliseconds.
MAX_SECONDS = 5.0
#: Largest size of one value, and of all values of a rendering, in characters; see `_size`.
MAX_VALUE = 1 << 24
MAX_TOTAL = 1 << 28
#: Largest number that a template may give to a function, such as the width of a text.
MAX_NUMBER = 10**6

#: Fields in which messages carry a model's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: Marks the end of a message that the model is to continue.
_END_MARK = "<<end of the message to continue>> "


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a model."""

    #: By name.
    by_name: Mapping[str, str]

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, Any]) -> ChatTemplates:
        """The templates of a directory. Files of their own replace those in tokenizer_config.json.

        Args:
            config: content of tokenizer_config.json.

        Raises:
            TokenizerError: a template is not text, or is too long.
        """
        files = {DEFAULT: directory / "chat_template.jinja"}
        for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
            files[path.name.removesuffix(".jinja")] = path
        found = {
            name: read_text(path, "chat template", TokenizerError, MAX_TEMPLATE_BYTES)
            for name, path in files.items()
            if path.is_file()
        }
        return cls(found or _configured(directory / "tokenizer_config.json", config))

    @property
    def default(self) -> str | None:
        """The template of a conversation without tools, if there is one."""
        return self.by_name.get(DEFAULT)

    def choose(self, name: str | None = None, *, tools: bool = False) -> str:
        """The template of a conversation: `tool_use` where there are tools, else the default.

        Args:
            name: name of another template, or a template.

        Raises:
            PromptError: the model has no such template.
        """
        if name is not None:
            return self.by_name.get(name, name)
        if tools and TOOL_USE in self.by_name:
            return self.by_name[TOOL_USE]
        if DEFAULT in self.by_name:
            return self.by_name[DEFAULT]
        if not self.by_name:
            raise PromptError("the model has no chat template; give the prompt as text, or use --raw")
        raise PromptError(
            "the model has no default chat template; choose one with the template argument chat_template: "
            f"{', '.join(sorted(self.by_name))}"
        )


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **arguments: Any,
) -> str:
    """The text that a chat template makes of a conversation. As in transformers, fields that are None are
    left out of messages.

    Args:
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: end within the last message, for the model to continue it.
        tools: JSON schemas, or functions with type hints and a docstring.
        documents: texts that the answer may use, ``{"title": ..., "text": ...}``.
        arguments: further variables of the template.

    Raises:
        PromptError: messages or tools have a wrong type, or the template exceeds its limits.
        Exception: whatever the template raises.
    """
    if add_generation_prompt and continue_final_message:
        raise PromptError("continue_final_message needs add_generation_prompt to be False")
    if not messages:
        raise PromptError("the conversation is empty; give at least one message")
    chat = [_plain_message(message) for message in messages]
    if continue_final_message:
        _mark_end(chat[-1])
    variables = {
        **{name: _plain(value) for name, value in arguments.items()},
        "messages": chat,
        "tools": None if tools is None else [_schema(tool) for tool in tools],
        "documents": _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    with _metered():
        text: str = _compile(template).render(variables)
    return _cut_end(text) if continue_final_message else text


def _configured(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates in tokenizer_config.json: one, or several by name."""
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        value = {DEFAULT: value}
    elif isinstance(value, list):
        value = {_entry(entry, "name", path): _entry(entry, "template", path) for entry in value}
    if not isinstance(value, Mapping) or not all(isinstance(template, str) for template in value.values()):
        raise TokenizerError(f"{path}: chat_template is neither a text nor texts by name.")
    if any(len(template) > MAX_TEMPLATE_BYTES for template in value.values()):
        raise TokenizerError(f"{path}: chat_template is longer than {MAX_TEMPLATE_BYTES} characters.")
    return dict(value)


def _entry(entry: Any, key: str, path: Path) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
        raise TokenizerError(f"{path}: an entry of chat_template has no {key}.")
    return str(entry[key])


def _plain_message(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"a chat message is a dictionary with role and content, not {shorten(message)}")
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """`value` in JSON's types. Others become a placeholder: a template must not reach an object's methods."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else list(value)
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _schema(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _plain(tool)
    if not callable(tool):
        raise PromptError(f"a tool is a JSON schema or a function, not {shorten(tool)}")
    from transformers.utils import get_json_schema

    return _plain(get_json_schema(tool))


def _mark_end(message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return
    blocks = content if isinstance(content, list) else []
    for block in reversed(blocks):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            block["text"] += _END_MARK
            return
    raise PromptError("the last message has no text to continue")


def _cut_end(text: str) -> str:
    start = text.rfind(_END_MARK.strip())
    if start < 0:
        raise PromptError("the chat template drops the last message, so it cannot be continued")
    # A template that strips messages has dropped the mark's final space too.
    return text[:start] if text.startswith(_END_MARK, start) else text[:start].rstrip()


class _Meter:
    """Counts what a template makes, and stops it at the limits.

    Every value that a template computes passes `add`; functions and operators that can make a large value of
    small ones are checked before they run.
    """

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._left = MAX_TOTAL

    def tick(self) -> None:
        if time.monotonic() > self._deadline:
            raise PromptError(f"the chat template runs for more than {MAX_SECONDS:g} seconds")

    def add(self, value: Any) -> Any:
        """`value`, counted with all that it contains."""
        self.tick()
        size, parts = 0, [value]
        while parts:
            part = parts.pop()
            if isinstance(part, str | list | tuple | dict):
                size += _size(part)
                self.check(size)
                if isinstance(part, dict):
                    parts += part.keys()
                    parts += part.values()
                elif not isinstance(part, str):
                    parts += part
        self._left -= size
        self.check(MAX_VALUE + 1 if self._left < 0 else 0)
        return value

    def check(self, size: float) -> None:
        if size > MAX_VALUE:
            raise PromptError("the chat template makes texts or lists that are too large")


_meter: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def _metered() -> Iterator[None]:
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> Environment:
    """transformers' sandbox, whose operations all go through the meter."""
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment.overlay(optimized=False, finalize=_add)
    # The text of a macro or block, and of the whole template.
    environment.concat = _join
    environment.intercepted_binops = frozenset(_OPERATORS)
    call_binop, call, generate = environment.call_binop, environment.call, environment._generate

    def metered_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        _OPERATORS[operator](left, right)
        return _add(call_binop(context, operator, left, right))

    def metered_call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps a text's format method.
        subject = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        _check_call(getattr(function, "__name__", ""), [subject, *args, *kwargs.values()])
        return _add(call(context, function, *args, **kwargs))

    def metered_generate(source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        _instrument(source, environment)
        return generate(source, *args, **kwargs)

    environment.call_binop, environment.call = metered_binop, metered_call
    environment._generate = metered_generate
    environment.filters = {name: _metered_filter(name, f) for name, f in environment.filters.items()}
    environment.filters |= {"vt_add": _add, "vt_join": _join}
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    return environment


def _instrument(source: Any, environment: Any) -> None:
    """Send through the meter what the environment has no hook for: loops, `a ~ b`, lists and dictionaries."""
    from jinja2 import nodes

    def through(name: str, node: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=environment)

    def rewritten(node: Any) -> Any:
        for field, value in list(node.iter_fields()):
            if isinstance(value, nodes.Node):
                setattr(node, field, rewritten(value))
            elif isinstance(value, list):
                value[:] = [rewritten(item) if isinstance(item, nodes.Node) else item for item in value]
        if isinstance(node, nodes.For):
            tick = through("vt_add", nodes.Const(None, lineno=node.lineno, environment=environment))
            node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno, environment=environment))
        if isinstance(node, nodes.Concat):
            return through("vt_join", nodes.List(node.nodes, lineno=node.lineno, environment=environment))
        # A tuple that is assigned to is no value.
        if isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return through("vt_add", node)
        return node

    rewritten(source)


def _size(value: Any) -> int:
    """Characters of a text; an item of a list or dictionary counts as 16, for it takes about as much."""
    if isinstance(value, str):
        return len(value)
    return 16 * len(value) if isinstance(value, list | tuple | dict) else 0


def _add(value: Any) -> Any:
    return _meter.get().add(value)


def _join(values: Iterable[Any]) -> str:
    texts = [str(value) for value in values]
    _meter.get().check(sum(map(len, texts)))
    return str(_add("".join(texts)))


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    from jinja2 import Environment
    from jinja2.nodes import EvalContext
    from jinja2.runtime import Context

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in args if not isinstance(arg, Context | EvalContext | Environment)]
        _check_call(name, [*given, *kwargs.values()])
        return _add(function(*args, **kwargs))

    return metered


def _check_call(name: str, values: Sequence[Any]) -> None:
    """Refuse a call whose result could be far larger than its arguments."""
    meter = _meter.get()
    meter.tick()
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise PromptError("the chat template calls a function with too large a number")
    sizes = sorted(map(_size, values))
    if name in ("indent", "wordwrap"):
        sizes = sorted([*sizes, *(value for value in values if isinstance(value, int))])
    if name in ("format", "format_map") and values and isinstance(values[0], str):
        _check_format(values[0], values[1:])
    # Joining or replacing can put the longest value once at every place of the next one.
    if name in _MULTIPLIERS and len(sizes) > 1:
        meter.check(sizes[-1] * sizes[-2])


#: Functions and filters that repeat one of their arguments.
_MULTIPLIERS = frozenset(
    ("join", "replace", "indent", "wordwrap", "translate", "format", "format_map", "do_replace")
)


def _check_format(template: str, values: Any) -> None:
    """Refuse formats with a large width, or with many places for long values."""
    widths = [int(digits) for digits in re.findall(r"\d{1,9}", template)]
    longest = max(map(_size, _listed(values)), default=0)
    if "*" in template or max(widths, default=0) > MAX_NUMBER or re.search(r"\d{10}", template):
        raise PromptError("the chat template formats a text with too large a width")
    _meter.get().check(longest * (template.count("%") + template.count("{")))


def _listed(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return list(values.values())
    return list(values) if isinstance(values, list | tuple) else [values]


def _check_sum(left: Any, right: Any) -> None:
    _meter.get().check(_size(left) + _size(right))


def _check_product(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(count, int):
            _meter.get().check(_size(value) * count)
    _check_bits(left, right, lambda a, b: a.bit_length() + b.bit_length())


def _check_power(left: Any, right: Any) -> None:
    _check_bits(left, right, lambda a, b: a.bit_length() * abs(b))


def _check_modulo(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _check_format(left, right)


def _check_bits(left: Any, right: Any, bits: Callable[[int, int], int]) -> None:
    if isinstance(left, int) and isinstance(right, int) and bits(left, right) > 4096:
        raise PromptError("the chat template computes with too large numbers")


_OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_sum,
    "*": _check_product,
    "**": _check_power,
    "%": _check_modulo,
}
