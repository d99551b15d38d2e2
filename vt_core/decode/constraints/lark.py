"""Grammars in llguidance's dialect of Lark: the JSON schemas inside them, and rules that never end."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from vt_core.decode.constraints.schema import enforceable
from vt_core.errors import ConstraintError, shorten

#: Keys of ``x-guidance`` that leave parts of a schema unenforced.
_LENIENT = {"lenient", "coerce_one_of"}
_TOKEN = re.compile(
    r"""
      (?P<space>  (?: \s | //[^\n]* | \#[^\n]* )+ )
    | (?P<text>   "(?: \\. | [^"\\\n] )*"i? | /(?! /)(?: \\. | [^/\\\n] )+/[a-z]* | <[^<>\s]*> )
    | (?P<percent> %[a-z]+ )
    | (?P<name>   [?!@]* [A-Za-z_][A-Za-z_0-9-]* )
    | (?P<other>  . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str  #: ``text``, ``percent``, ``name``, ``other`` or ``json``
    text: str
    start: int
    value: Any = None  #: of ``json``


def with_enforced_schemas(lark: str, layout: Mapping[str, Any]) -> str:
    """A grammar whose JSON schemas, ``%json {…}``, are enforced in full.

    Args:
        lark: a grammar.
        layout: how JSON is written where a schema does not say it in ``x-guidance``.

    Raises:
        ConstraintError: a schema cannot be enforced.
    """
    parts, end = [], 0
    for token, after in pairwise(_tokens(lark)):
        if token.text == "%json" and after.kind == "json" and isinstance(after.value, dict):
            schema = after.value
            own = schema.pop("x-guidance", {})
            if not isinstance(own, dict) or _LENIENT & set(own):
                raise ConstraintError(
                    "grammar: x-guidance in %json must not say lenient or coerce_one_of, which leave parts "
                    "of a schema unenforced"
                )
            chosen = dict(layout)
            if own.get("whitespace_flexible"):  # then spaces are not part of the separators
                chosen |= {"item_separator": ",", "key_separator": ":"}
            schema = {**enforceable(schema, "grammar: %json"), "x-guidance": chosen | own}
            parts += [lark[end : after.start], json.dumps(schema)]
            end = after.start + len(after.text)
    return "".join([*parts, lark[end:]])


def check_ends(lark: str) -> None:
    """Check that every rule can end. A text that this module cannot read is left to llguidance.

    Raises:
        ConstraintError: a rule requires itself.
    """
    try:
        endless = _Reader([*_tokens(lark)]).endless()
    except (_Unknown, ValueError, RecursionError):
        return
    if endless is not None:
        raise ConstraintError(
            f"grammar: the rule {shorten(endless)} allows no finite text, because it requires itself or a "
            "rule that does; give it an alternative that ends"
        )


def _tokens(lark: str) -> Iterator[_Token]:
    at, directive = 0, False
    decoder = json.JSONDecoder()
    while at < len(lark):
        if directive and lark[at] == "{":
            try:
                value, end = decoder.raw_decode(lark, at)
            except (ValueError, RecursionError):
                pass  # llguidance reports it
            else:
                yield _Token("json", lark[at:end], at, value)
                at, directive = end, False
                continue
        match = _TOKEN.match(lark, at)
        assert match is not None and match.lastgroup is not None, "every character is a token"
        if match.lastgroup != "space":
            directive = match.lastgroup == "percent"
            yield _Token(match.lastgroup, match[0], at)
        at = match.end()


#: Whether something can end, if the rules with these names can.
_Ends = Callable[[set[str]], bool]


class _Unknown(Exception):
    """Something that :class:`_Reader` does not know."""


class _Reader:
    """Reads rules, as far as it matters which of them can end."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = [*tokens, _Token("end", "", 0)]
        self._at = 0
        self._rules: dict[str, _Ends] = {}
        self._users: defaultdict[str, list[str]] = defaultdict(list)  #: rules that name a rule
        self._defined = ""  #: the rule that is read

    def endless(self) -> str | None:
        """The first rule that cannot end, if there is one."""
        self._read()
        ending: set[str] = set()
        waiting = list(self._rules)
        while waiting:
            name = waiting.pop()
            if name in self._rules and name not in ending and self._rules[name](ending):
                ending.add(name)
                waiting += self._users[name]
        return next((name for name in self._rules if name not in ending), None)

    def _read(self) -> None:
        """Read all definitions. Terminals cannot require themselves."""
        while self._next.kind != "end":
            if self._next.kind == "percent":
                self._skip_directive()
                continue
            self._defined = self._take("name").lstrip("?!")
            self._skip_attributes()
            self._take("other", ":")
            ends = self._alternatives()
            if not self._defined.isupper():
                self._rules[self._defined] = ends

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, kind: str, text: str | None = None) -> str:
        token = self._next
        if token.kind != kind or text not in (None, token.text):
            raise _Unknown
        self._at += 1
        return token.text

    def _skip_directive(self) -> None:
        if self._take("percent") not in ("%ignore", "%llguidance"):
            raise _Unknown
        if self._next.kind == "json":
            self._at += 1
        else:
            self._alternatives()

    def _skip_attributes(self) -> None:
        if self._next.text == "[":
            while self._next.text != "]":
                if self._next.kind == "end":
                    raise _Unknown
                self._at += 1
            self._at += 1
        if self._next.text == ".":
            self._at += 1
            while self._next.text.isdigit():
                self._at += 1

    def _begins_definition(self) -> bool:
        """Whether a name is that of the next rule."""
        start = self._at
        try:
            self._take("name")
            self._skip_attributes()
            return self._next.text == ":"
        except _Unknown:
            return False
        finally:
            self._at = start

    def _alternatives(self) -> _Ends:
        options = [self._sequence()]
        while self._next.text == "|":
            self._at += 1
            options.append(self._sequence())
        return lambda ending: any(option(ending) for option in options)

    def _sequence(self) -> _Ends:
        items: list[_Ends] = []
        while (item := self._item()) is not None:
            items.append(item)
        return lambda ending: all(item(ending) for item in items)

    def _item(self) -> _Ends | None:
        token = self._next
        ends: _Ends = _always
        if token.text in ("(", "["):
            self._at += 1
            inner = self._alternatives()
            self._take("other", ")" if token.text == "(" else "]")
            ends = inner if token.text == "(" else _always
        elif token.kind == "text":
            self._at += 1
        elif token.kind == "percent" and token.text in ("%json", "%regex"):
            self._at += 1
            self._take("json")
        elif token.kind == "name" and not self._begins_definition():
            self._at += 1
            ends = self._rule(token.text)
        elif token.kind in ("end", "percent", "name") or token.text in ("|", ")", "]"):
            return None
        else:
            raise _Unknown
        return _always if self._may_be_left_out() else ends

    def _rule(self, name: str) -> _Ends:
        self._users[name].append(self._defined)
        # Terminals, and grammars from elsewhere, are not among the rules.
        return lambda ending: name in ending or name not in self._rules

    def _may_be_left_out(self) -> bool:
        """Read what follows an item: ``?``, ``*``, ``+``, ``{2,3}``, ``~2..3``, ``-> alias``."""
        least = 1
        while self._next.text in ("?", "*", "+", "{", "~", ".", "-"):
            sign = self._take("other")
            if sign in "?*":
                least = 0
            elif sign == "{":
                least *= self._count()
            elif sign == ".":  # a range, "a".."z"
                self._take("other", ".")
                self._take("text")
            elif sign == "-":
                self._take("other", ">")
                self._take("name")
            elif sign == "~":
                raise _Unknown
        return least == 0

    def _count(self) -> int:
        """The least of ``{2}``, ``{2,}``, ``{,3}`` and ``{2,3}``, after the brace."""
        text = ""
        while self._next.text != "}":
            text += self._next.text
            if self._next.kind != "other":
                raise _Unknown
            self._at += 1
        self._at += 1
        return int(text.split(",")[0] or 0)


def _always(ending: set[str]) -> bool:
    return True
