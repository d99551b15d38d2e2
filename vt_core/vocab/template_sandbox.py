"""Runs chat templates in transformers' sandbox, within limits on time and size.

Templates come with the model and are programs. The sandbox keeps them away from Python, but lets them loop
for hours and fill the memory. So here every operation of a template goes through a meter. Functions and
operators that could make a large value of small ones are checked before they run.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vt_core.errors import PromptError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

#: Seconds of processor time that a template may take, which do not grow on a busy machine. Real ones take
#: milliseconds.
MAX_SECONDS = 5.0
#: Largest size of one value, and of all values of a rendering, in characters; see `_size`.
MAX_VALUE = 1 << 24
MAX_TOTAL = 1 << 28
#: Largest number that a template may give to a function, such as the width of a text.
MAX_NUMBER = 10**6


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Raises:
        PromptError: the template exceeds the limits.
        Exception: whatever the template raises.
    """
    token = _meter.set(_Meter())
    try:
        return _compile(template).render(variables)
    finally:
        _meter.reset(token)


class _Meter:
    """Counts what a template computes, and stops it at the limits."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_SECONDS
        self._left = MAX_TOTAL

    def tick(self) -> None:
        """Stop a template that has run too long."""
        if time.thread_time() > self._deadline:
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
        """Refuse a value of this size."""
        if size > MAX_VALUE:
            raise PromptError("the chat template makes texts or lists that are too large")


_meter: ContextVar[_Meter] = ContextVar("meter")


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

    def metered_call(context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
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
        # A tuple may also be the target of an assignment.
        if isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return through("vt_add", node)
        return node

    rewritten(source)


def _size(value: Any) -> int:
    """Characters of a text. An item of a list or dictionary counts as 16 characters of memory."""
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
    """Refuse a call whose result could be far larger than its arguments.

    Args:
        name: of the function, method or filter.
        values: the object of a method, then the arguments.
    """
    meter = _meter.get()
    meter.tick()
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise PromptError("the chat template calls a function with too large a number")
    first, *rest = values or [None]
    numbers = [value for value in rest if isinstance(value, int)]
    longest = max(map(_size, rest), default=0)
    if name == "replace" and len(rest) > 1:
        meter.check(str(first).count(str(rest[0])) * _size(rest[1]))
    elif name in ("indent", "wordwrap"):
        meter.check((str(first).count("\n") + 1) * max([longest, *numbers]))
    elif name in ("join", "translate"):
        meter.check(_size(first) * longest / 16)
    elif name in ("format", "format_map") and isinstance(first, str):
        _check_format(first, rest)


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
