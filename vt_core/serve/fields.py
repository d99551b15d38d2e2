"""Fields of a request's JSON: which exist, what they may hold, and what is refused.

A field that this server does not know, or cannot honor, is refused by name if it could change the answer. A
field that changes nothing here, such as ``user``, is accepted. A field that is null counts as not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vt_core.errors import escape_controls, shorten
from vt_core.serve.errors import refused

#: Takes a field's name and its value, which is not null; returns the value to use or raises ApiError.
Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Table:
    """The fields of one kind of object."""

    used: Mapping[str, Check]  #: fields that have an effect
    harmless: Collection[str] = ()  #: fields that are accepted and have none
    #: Fields that are accepted with these values only, which ask for nothing.
    neutral: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    required: Collection[str] = ()  #: fields that must be given

    def read(self, name: str, value: Any) -> dict[str, Any]:
        """The used fields that an object gives, checked. Can be a :data:`Check` itself.

        Args:
            name: path of the object; empty for a request's body.
            value: the object.

        Raises:
            ApiError: the value is no object, or a field is unknown, missing, wrong, or cannot be honored.
        """
        if not isinstance(value, dict):
            raise refused(name or "the body", f"is {shorten(value)}, but it must be an object")
        found = {}
        for key, item in value.items():
            path = f"{name}.{key}" if name else key
            if item is None or key in self.harmless:
                continue
            if key in self.used:
                found[key] = self.used[key](path, item)
            elif key in self.neutral:
                if not any(item == allowed and type(item) is type(allowed) for allowed in self.neutral[key]):
                    raise refused(path, _supported(self.neutral[key]), "unsupported_value")
            else:
                raise refused(escape_controls(path[:100]), "is not supported by this server", "unknown_field")
        for key in self.required:
            if key not in found:
                raise refused(f"{name}.{key}" if name else key, "is required", "missing_field")
        return found


def _supported(values: Sequence[Any]) -> str:
    if not values:
        return "is not supported by this server"
    return f"is supported as {' or '.join(map(shorten, values))} only"


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A number in a range."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise refused(name, f"is {shorten(value)}, but it must be a number")
        if not least <= value <= most:
            bounds = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
            raise refused(name, f"is {value}, but it must be {bounds}")
        return float(value)

    return check


def whole(least: int, most: int = 2**31 - 1) -> Check:
    """A whole number in a range."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise refused(name, f"is {shorten(value)}, but it must be a whole number")
        if not least <= value <= most:
            raise refused(name, f"is {shorten(value)}, but it must be between {least} and {most}")
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise refused(name, f"is {shorten(value)}, but it must be true or false")
    return value


def text(name: str, value: Any) -> str:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise refused(name, f"is {shorten(value)}, but it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refused(name, "holds half a surrogate pair, which is no character") from None
    return value


def choice(*choices: str) -> Check:
    """One of some texts."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise refused(name, f"is {shorten(value)}, but it must be one of {', '.join(choices)}")
        return value

    return check


def array(item: Check, least: int = 0, most: int = 100_000) -> Check:
    """A list of checked items."""

    def check(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise refused(name, f"is {shorten(value)}, but it must be a list")
        if not least <= len(value) <= most:
            raise refused(name, f"has {len(value)} items, but it must have {least} to {most}")
        return [item(f"{name}[{at}]", each) for at, each in enumerate(value)]

    return check


def anything(name: str, value: Any) -> Any:
    """Any JSON value, for fields that the chat template or a schema checks."""
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """An object of any content."""
    if not isinstance(value, dict):
        raise refused(name, f"is {shorten(value)}, but it must be an object")
    return value


def stops(name: str, value: Any) -> tuple[str, ...]:
    """Stop strings: one text or several."""
    given = [value] if isinstance(value, str) else array(text, most=64)(name, value)
    if any(item == "" for item in given):
        raise refused(name, "holds an empty text, which would end every answer at once")
    return tuple(given)


def logit_bias(name: str, value: Any) -> dict[int, float]:
    """Token ids, as JSON's texts, and what to add to their logits."""
    biases = {}
    for key, bias in mapping(name, value).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise refused(name, f"has the key {shorten(key)}, but its keys must be token ids")
        biases[int(key)] = number(-100, 100)(f"{name}.{key}", bias)
    return biases
