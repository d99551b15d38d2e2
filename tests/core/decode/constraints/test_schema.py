"""JSON schemas: what is enforced, and what is refused."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from tests.core.decode.constraints.engines import accepts, engine, text_of, walk
from vt_core.decode.constraints import grammar_option
from vt_core.errors import ConstraintError, OptionError

CLOSED = {"additionalProperties": False}
NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
    "required": ["value"],
    **CLOSED,
}
SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "n": {"type": "integer"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "n"],
        **CLOSED,
    },
    "nested": {
        "type": "object",
        "properties": {
            "a": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"], **CLOSED}
        },
        "required": ["a"],
        **CLOSED,
    },
    "arrays": {
        "type": "array",
        "items": {"type": "integer", "minimum": -3, "maximum": 12},
        "minItems": 1,
        "maxItems": 4,
    },
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "minItems": 2, "maxItems": 2},
    "enum": {"enum": ["a", "bé", 1, None, True, {"x": [1, "y"]}]},
    "any of": {
        "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[a-c]{2,3}$"}, {"type": "null"}]
    },
    "one of": {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "numbers": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2.5},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "non-ASCII": {
        "type": "object",
        "properties": {"größe": {"enum": ["groß", "小", "😀"]}},
        "required": ["größe"],
        **CLOSED,
    },
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "map": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
        "maxProperties": 2,
    },
    "patterns": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        **CLOSED,
        "maxProperties": 2,
    },
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time", "maxLength": 20},
    "ipv4": {"type": "string", "format": "ipv4"},
    "uuid": {"type": "string", "format": "uuid"},
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        "title": "T",
        "description": "d",
        "x-order": 3,
        "type": "integer",
        "default": 1,
        "examples": ["not an integer"],
        "maximum": 9,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_are_valid(name):
    schema = SCHEMAS[name]
    grammar = grammar_option(json_schema=schema)
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    finished = 0
    for seed in range(12):
        tokens = walk(engine().start(grammar), np.random.default_rng(seed))
        if tokens is not None:
            checker.validate(json.loads(text_of(tokens)))
            finished += 1
    assert finished >= 6


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "format": "date"}, '"0000-01-01"'),
        ({"type": "string", "format": "date-time"}, '"2100-02-29T00:00:00Z"'),
        ({"type": "string", "format": "time"}, '"12:00:60Z"'),
        # The key is "a".
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"b": 1, "\\u0061": "x"}'),
        ({"type": "string", "minLength": 2}, '"😀"'),
        ({"type": "integer", "minimum": 10, "maximum": 12}, "9"),
        ({"type": "object", "required": ["a"]}, "{}"),
        ({"type": "object", "additionalProperties": False}, '{"a": 1}'),
        ({"type": "integer"}, "1 "),
        ({"type": "array", "maxItems": 2.0}, "[1, 2, 3]"),
    ],
)
def test_invalid_texts_are_not_allowed(schema, text):
    assert not accepts(grammar_option(json_schema=schema), text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "format": "date"}, '"2024-02-29"'),
        ({"type": "string", "format": "date"}, '"1999-12-31"'),
        ({"type": "string", "format": "date-time"}, '"2000-02-29T23:59:59Z"'),
        ({"type": "string"}, '"a\\nb\\"c\\\\é"'),
        ({"type": "string", "pattern": "^a[\\x00-\\x1f]?b$"}, '"ab"'),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, '{"a": [1, {"x": null}], "b": 2}'),
        ({"$ref": "#foo", "$defs": {"x": {"$anchor": "foo", "const": 1}}}, "1"),
        ({"properties": {"a/b~": {"const": 1}, "c": {"$ref": "#/properties/a~1b~0"}}}, '{"c": 1}'),
        ({"properties": {"a": True, "b": {"$ref": "#/properties/a"}}}, '{"b": "x"}'),
        ({"type": "array", "maxItems": 2.0}, "[1, 2]"),
        # Decimal: the quotient of the binary floats is not whole.
        ({"type": "number", "multipleOf": 0.1}, "1.9"),
    ],
)
def test_valid_texts_are_allowed(schema, text):
    assert accepts(grammar_option(json_schema=schema), text)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "array", "uniqueItems": True}, "uses uniqueItems, which cannot be enforced"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, r"uses not \(at '#/properties/a'\)"),
        ({"properties": {"a": {"items": [{"if": {}}]}}}, r"uses if \(at '#/properties/a/items/0'\)"),
        ({"type": "integer", "requird": ["a"]}, "uses requird"),
        ({"x-guidance": {"lenient": True}}, "uses x-guidance"),
        ({"type": "string", "nullable": True}, "uses nullable"),
        ({"type": "string", "format": "iri"}, "uses format 'iri'"),
        ({"type": "integer", "format": "int32"}, "uses format 'int32'"),
        ({"type": "string", "format": "unknown"}, "uses format 'unknown'"),
        ({"$ref": "https://example.com/x"}, "uses .ref 'https://example.com/x' to something outside"),
        ({"$ref": "#/default", "default": {"uniqueItems": True}}, "uses .ref '#/default'"),
        ({"$ref": "#/$defs/x"}, "uses .ref"),
        ({"properties": {"a": {"$id": "https://example.com/x"}}}, "uses .id"),
        ({"type": "object", "minProperties": 2}, "minProperties above 1"),
        ({"const": "a\0b"}, r"control character U\+0000"),
        ({"properties": {"a\x7f": {}}}, r"control character U\+007F"),
        ({"enum": [[{"a": "\x01"}]]}, r"control character U\+0001"),
        ({"type": "string", "pattern": "^a\\x0bb$"}, r"control character U\+000B in a pattern"),
        ({"type": "string", "pattern": "^a\\vb$"}, r"control character U\+000B in a pattern"),
        ({"type": "string", "pattern": "(?=a)b"}, "cannot be enforced .*look-around"),
        ({"type": "strin"}, "cannot be enforced"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "cannot be enforced .*minimum"),
        ({"enum": [1], "type": "string"}, "cannot be enforced"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "cannot be enforced .*oneOf"),
        ({"$ref": "#"}, "allows no finite value"),
        ({**NODE, "required": ["next"], "$defs": {"node": {"$ref": "#"}}}, "allows no finite value"),
        (
            {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"$ref": "#/$defs/x"}}},
            "at '#/anyOf/1' allows no finite value",
        ),
        (
            {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
            "allows no finite value, because it requires itself",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema, sentence):
    with pytest.raises(ConstraintError, match=sentence):
        grammar_option(json_schema=schema)


class Person:
    """As a pydantic model class."""

    @classmethod
    def model_json_schema(cls):
        return SCHEMAS["flat"]


def test_a_schema_is_a_dictionary_text_or_class():
    grammars = {
        grammar_option(json_schema=given)
        for given in (SCHEMAS["flat"], json.dumps(SCHEMAS["flat"]), Person, Person())
    }
    assert len(grammars) == 1


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


CYCLE: dict = {"type": "object"}
CYCLE["properties"] = {"a": CYCLE}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("[1", "not valid JSON"),
        ("true", "must be a JSON object"),
        (True, "must be a JSON object"),
        (3, "must be a JSON object"),
        ('{"a": 1, "a": 2}', "twice"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": {1, 2}}, "cannot be written as JSON"),
        (CYCLE, "cannot be written as JSON"),
        (nested(200), "nested"),
        ({"const": "x" * (1 << 20)}, "more than the limit"),
        ({"const": "\ud800"}, "not UTF-8"),
    ],
)
def test_what_is_no_schema_is_refused(given, sentence):
    with pytest.raises(ConstraintError, match=sentence):
        grammar_option(json_schema=given)


def test_options_do_not_go_together():
    with pytest.raises(OptionError, match="json_schema and regex do not go together"):
        grammar_option(json_schema={}, regex="a")
    with pytest.raises(OptionError, match="regex is 3, but it must be text"):
        grammar_option(regex=3)
    assert grammar_option() is None
