"""Tool calls as families of models write them, read from the text between their markers."""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vt_core.errors import shorten


class Call(NamedTuple):
    """A call of a tool."""

    name: str  #: of the tool
    arguments: dict[str, Any]  #: by name


def call_id(length: int) -> str:
    """A new id for a call; some chat templates demand 9 letters and digits."""
    return secrets.token_hex(length)[:9] if length == 9 else f"call_{secrets.token_hex(length // 2)}"


class NotACall(Exception):
    """A text is no tool call, although its marker says so."""


#: Reads the text between the markers; raises NotACall, or one of :data:`_FAULTS`.
Reader = Callable[[str], list[Call]]
_FAULTS = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, KeyError, IndexError)


def read_calls(reader: Reader, text: str) -> list[Call]:
    """The calls of a text, at least one.

    Raises:
        NotACall: the text holds something else.
    """
    try:
        calls = reader(text)
    except _FAULTS as error:
        raise NotACall(shorten(text)) from error
    if not calls:
        raise NotACall(shorten(text))
    return calls


def json_calls(text: str) -> list[Call]:
    """Objects ``{"name": …, "arguments": {…}}`` (or ``parameters``), in a list or one after the other."""
    return [_call(item) for value in _json_values(text) for item in _listed(value)]


def hermes_calls(text: str) -> list[Call]:
    """JSON; or XML of Qwen3-Coder, ``<function=NAME><parameter=KEY>VALUE</parameter></function>``."""
    if "<function=" not in text:
        return json_calls(text)
    calls = []
    for name, body in re.findall(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", text, re.DOTALL):
        found = re.findall(r"<parameter=([^>\s]+)>(.*?)(?:</parameter>|$)", body, re.DOTALL)
        calls.append(Call(name, {key: _xml_value(value) for key, value in found}))
    return calls


def mistral_calls(text: str) -> list[Call]:
    """A JSON list of calls, or ``NAME[ARGS]{…}`` repeated."""
    if "[ARGS]" not in text:
        return json_calls(text)
    decoder = json.JSONDecoder()
    calls, at = [], 0
    header = re.compile(r"(?:\[TOOL_CALLS\])?\s*([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")
    while text[at:].strip():
        match = header.match(text, at)
        if match is None:
            raise NotACall(shorten(text))
        arguments, at = decoder.raw_decode(text, match.end())
        calls.append(_call({"name": match[1], "arguments": arguments}))
    return calls


def python_calls(text: str) -> list[Call]:
    """A Python list of calls, ``[name(key=value), …]``."""
    body = ast.parse(text.strip(), mode="eval").body
    items = body.elts if isinstance(body, ast.List) else [body]
    calls = []
    for item in items:
        if not isinstance(item, ast.Call) or item.args:
            raise NotACall(shorten(text))
        arguments = {}
        for keyword in item.keywords:
            if keyword.arg is None:
                raise NotACall(shorten(text))
            arguments[keyword.arg] = ast.literal_eval(_JsonNames().visit(keyword.value))
        calls.append(Call(ast.unparse(item.func), arguments))
    return calls


def gemma_calls(text: str) -> list[Call]:
    """``call:NAME{key:value,…}``, maybe repeated; texts stand between ``<escape>`` or ``<|"|>``."""
    calls, at = [], 0
    header = re.compile(r"\s*(?:<start_function_call>|<\|tool_call>)?\s*call:([\w.-]+)(?=\{)")
    while text[at:].strip():
        match = header.match(text, at)
        if match is None:
            raise NotACall(shorten(text))
        arguments, at = _gemma_value(text, match.end())
        calls.append(Call(match[1], arguments))
    return calls


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n;,"))
        if at == len(text):
            return
        value, at = decoder.raw_decode(text, at)
        yield value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(value: Any) -> Call:
    if not isinstance(value, Mapping):
        raise NotACall(shorten(value))
    inner = value.get("function")
    if isinstance(inner, Mapping):
        value = inner
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise NotACall(shorten(value))
    return Call(name, arguments)


def _xml_value(text: str) -> Any:
    """A parameter's value: JSON where it is an object, a list, a number or a keyword, else text."""
    text = text.removeprefix("\n").removesuffix("\n")
    try:
        return json.loads(text)
    except ValueError:
        return text


class _JsonNames(ast.NodeTransformer):
    """Chat templates write true, false and null in Python calls."""

    _VALUES: Mapping[str, Any] = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._VALUES[node.id]) if node.id in self._VALUES else node


_GEMMA_QUOTES = ("<escape>", '<|"|>')
_GEMMA_PLAIN = re.compile(r"[^,{}\[\]]+")
_GEMMA_KEY = re.compile(r"\s*([^:,{}\[\]]+):")


def _gemma_value(text: str, at: int) -> tuple[Any, int]:
    """The value at a place of a text, and the place after it."""
    for quote in _GEMMA_QUOTES:
        if text.startswith(quote, at):
            start = at + len(quote)
            end = text.index(quote, start)
            return text[start:end], end + len(quote)
    if text.startswith("{", at):
        return _gemma_items(text, at + 1)
    if text.startswith("[", at):
        items, at = [], at + 1
        while not text.startswith("]", at):
            item, at = _gemma_value(text, at)
            items.append(item)
            at += text.startswith(",", at)
        return items, at + 1
    match = _GEMMA_PLAIN.match(text, at)
    if match is None:
        raise NotACall(shorten(text))
    return _xml_value(match[0].strip()), match.end()


def _gemma_items(text: str, at: int) -> tuple[dict[str, Any], int]:
    items: dict[str, Any] = {}
    while not text.startswith("}", at):
        match = _GEMMA_KEY.match(text, at)
        if match is None:
            raise NotACall(shorten(text))
        key = match[1].strip()
        for quote in _GEMMA_QUOTES:
            key = key.removeprefix(quote).removesuffix(quote)
        items[key], at = _gemma_value(text, match.end())
        at += text.startswith(",", at)
    return items, at + 1
