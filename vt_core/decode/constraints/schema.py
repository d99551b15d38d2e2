"""Which JSON schemas can be enforced. Whatever changes validity is either enforced by llguidance, or refused.

llguidance compiles most of JSON Schema and reports many of the rest. It ignores keywords that it does not
know, so that a misspelled one would not be enforced. Here every keyword must be known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from vt_core.errors import ConstraintError, shorten

#: Keywords that llguidance enforces, or refuses where it cannot.
ENFORCED = frozenset(
    {
        "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref",
        "properties", "required", "additionalProperties", "patternProperties", "minProperties",
        "maxProperties", "items", "prefixItems", "additionalItems", "minItems", "maxItems",
        "minLength", "maxLength", "pattern", "format",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    }
)  # fmt: skip
#: Keywords that do not change which values are valid, or only hold schemas for ``$ref``. Keywords that begin
#: with ``x-`` are annotations too.
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly",
        "$comment", "$schema", "$id", "id", "$anchor", "$defs", "definitions",
        "contentMediaType", "contentEncoding", "contentSchema", "discriminator", "externalDocs", "xml",
    }
)  # fmt: skip
#: Formats of strings that llguidance enforces.
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)

#: A year above 0, as Python and most libraries want it.
_YEAR = "^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-"
#: February 29 only in leap years.
_DAY = (
    "^(....-(0[13-9]|1[0-2])|....-02-([01]|2[0-8])"
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
#: Leap seconds are left out: which minutes have one is not a matter of form.
_SECOND = ":[0-9]{2}:[0-5][0-9]"
#: Patterns that llguidance's formats need besides, found by comparison with other validators.
STRICTER = {"date": (_YEAR, _DAY), "date-time": (_YEAR, _DAY, _SECOND), "time": (_SECOND,)}

#: Control characters that JSON writes only as ``\\u0001``. llguidance drops them from texts, because answers
#: do not hold such escapes: they would be second names of properties.
_UNWRITTEN = frozenset({*range(0x20), 0x7F}) - {ord(character) for character in "\b\t\n\f\r"}
#: An escape of a regular expression, or a control character in it.
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|[xu]\{([0-9A-Fa-f]+)\}|(.))|([\x00-\x1f\x7f])", re.DOTALL
)
_NAMED_ESCAPES = {"a": 7, "v": 11}

#: Keywords whose value is a whole number.
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
#: Keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE = ("items", "additionalItems", "additionalProperties")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def enforceable(schema: Mapping[str, Any], option: str) -> dict[str, Any]:
    """A copy of a schema that llguidance enforces in full.

    Args:
        schema: values as :func:`json.loads` gives them.
        option: what the schema is called in messages.

    Raises:
        ConstraintError: a keyword or format would not be enforced, a reference leads out of the schema, or
            some part allows no finite value.
    """
    copy = _copied(schema)
    walk = _Walk(copy, option)
    walk.check()
    for node in walk.nodes:
        # JSON's 2.0 is the whole number 2.
        node |= {name: int(node[name]) for name in _COUNTS if _is_whole_float(node.get(name))}
        if patterns := STRICTER.get(node.get("format", "")):
            node["allOf"] = [*node.get("allOf", []), *({"pattern": pattern} for pattern in patterns)]
    return copy


def literals(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The values that a schema spells out: names of properties, and values of ``enum`` and ``const``."""
    for _, node in _nodes(schema):
        yield from node.get("properties", {})
        yield from node.get("required", [])
        yield from node.get("enum", [])
        if "const" in node:
            yield node["const"]


def _is_whole_float(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _nodes(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON pointer and value of every schema in a schema, ``true`` and ``false`` left out."""
    stack = [("#", schema)]
    while stack:
        where, node = stack.pop()
        if not isinstance(node, dict):
            continue
        yield where, node
        below: list[tuple[str, Any]] = []
        for name in _ONE:
            below.append((name, node.get(name)))
        for name in _LIST:
            if isinstance(node.get(name), list):
                below += [(f"{name}/{at}", part) for at, part in enumerate(node[name])]
        for name in _NAMED:
            if isinstance(node.get(name), dict):
                below += [(f"{name}/{_escaped(key)}", part) for key, part in node[name].items()]
        stack += [(f"{where}/{path}", part) for path, part in reversed(below)]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _unwritten(pattern: str) -> int | None:
    """The code of a control character that a pattern wants, if there is one. As the end of a range it is only
    a possibility.
    """
    for match in _ESCAPE.finditer(pattern):
        digits = match[1] or match[2] or match[3]
        code = int(digits, 16) if digits else ord(match[5]) if match[5] else _NAMED_ESCAPES.get(match[4])
        in_range = "-" in (pattern[match.start() - 1 : match.start()], pattern[match.end() : match.end() + 1])
        if code in _UNWRITTEN and not in_range:
            return code
    return None


class _Walk:
    """The checks of one schema."""

    def __init__(self, schema: dict[str, Any], option: str) -> None:
        self._option = option
        self._places = dict(_nodes(schema))
        self._root = schema
        self._anchors = {node["$anchor"]: node for node in self.nodes if isinstance(node.get("$anchor"), str)}

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Every schema in the schema."""
        return list(self._places.values())

    def check(self) -> None:
        for where, node in self._places.items():
            self._check_keywords(where, node)
        endless = self._endless()
        if endless is not None:
            raise ConstraintError(
                f"{self._option}: the schema at {shorten(endless)} allows no finite value, because it "
                "requires itself; make one of its properties optional"
            )

    def _check_keywords(self, where: str, node: dict[str, Any]) -> None:
        for name in node:
            known = name in ENFORCED or name in ANNOTATIONS
            if not known and not (name.startswith("x-") and name != "x-guidance"):
                raise self._refused(name, where)
        if where != "#" and isinstance(node.get("$id", node.get("id")), str):
            raise self._refused("$id", where)
        if "format" in node and node["format"] not in FORMATS:
            raise self._refused(f"format {shorten(node['format'])}", where)
        for text in self._texts(node):
            if found := next((character for character in text if ord(character) in _UNWRITTEN), None):
                raise self._refused(f"the control character U+{ord(found):04X}", where)
        for pattern in [node.get("pattern"), *_keys(node.get("patternProperties"))]:
            if isinstance(pattern, str) and (code := _unwritten(pattern)) is not None:
                raise self._refused(f"the control character U+{code:04X} in a pattern", where)
        least = node.get("minProperties", 0)
        if isinstance(least, (int, float)) and least > 1 and self._is_open(node):
            # llguidance lets a key that "properties" does not list appear twice.
            raise self._refused("minProperties above 1 beside unnamed properties", where)
        if "$ref" in node and self._target(node["$ref"]) is None:
            raise self._refused(f"$ref {shorten(node['$ref'])} to something outside of it", where)

    @staticmethod
    def _texts(node: dict[str, Any]) -> Iterator[str]:
        """The texts that answers hold as a schema gives them."""
        stack: list[Any] = [
            node.get("enum"),
            node.get("const"),
            node.get("required"),
            _keys(node.get("properties")),
        ]
        while stack:
            value = stack.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                stack += value
            elif isinstance(value, dict):
                stack += [*value, *value.values()]

    def _is_open(self, node: dict[str, Any]) -> bool:
        """Whether an object may have properties that are not listed and required."""
        named = node.get("properties")
        required = node.get("required")
        least = node["minProperties"]
        listed = isinstance(named, dict) and isinstance(required, list) and len(set(required)) >= least
        return not listed and (node.get("additionalProperties") is not False or "patternProperties" in node)

    def _refused(self, what: str, where: str) -> ConstraintError:
        place = "" if where == "#" else f" (at {shorten(where)})"
        return ConstraintError(
            f"{self._option} uses {what}{place}, which cannot be enforced; leave it out, or check the answer "
            "yourself"
        )

    def _target(self, reference: Any) -> Any:
        """The schema that a reference names; None if it is not one of this schema's."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        if len(reference) > 1 and reference[1] != "/":
            return self._anchors.get(reference[1:])
        path = unquote(reference)
        if path in self._places:
            return self._places[path]
        parent, _, key = path.rpartition("/")
        holder: Any = self._root
        for part in [*parent.split("/")[1:], key]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(holder, list):
                holder = holder[int(part)] if part.isdigit() and int(part) < len(holder) else None
            else:
                holder = holder.get(part) if isinstance(holder, dict) else None
        # A schema that is true or false needs no check of its own.
        return holder if isinstance(holder, bool) else None

    def _endless(self) -> str | None:
        """The place of a schema that allows no finite value, if there is one."""
        finite: set[int] = set()
        found = True
        while found:
            found = False
            for node in self._places.values():
                if id(node) not in finite and self._is_finite(node, finite):
                    finite.add(id(node))
                    found = True
        return next((where for where, node in self._places.items() if id(node) not in finite), None)

    def _is_finite(self, node: dict[str, Any], finite: set[int]) -> bool:
        def ends(part: Any) -> bool:
            return not isinstance(part, dict) or id(part) in finite

        parts: list[Any] = []
        if "$ref" in node:
            parts.append(self._target(node["$ref"]))
        for name in ("anyOf", "oneOf"):
            options = node.get(name)
            if isinstance(options, list) and not any(map(ends, options)):
                return False
        if isinstance(node.get("allOf"), list):
            parts += node["allOf"]
        kind = node.get("type")
        if kind == "object" and isinstance(node.get("required"), list):
            named = node.get("properties")
            named = named if isinstance(named, dict) else {}
            others = node.get("additionalProperties", True)
            parts += [named.get(key, others) for key in node["required"] if isinstance(key, str)]
        if kind == "array" and isinstance(node.get("minItems"), int):
            first = node.get("prefixItems", node.get("items"))
            first = first if isinstance(first, list) else []
            parts += first[: node["minItems"]]
            if node["minItems"] > len(first):
                parts.append(node.get("items") if isinstance(node.get("items"), dict) else None)
        return all(map(ends, parts))
