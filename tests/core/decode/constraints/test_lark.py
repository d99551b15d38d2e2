"""Grammars in Lark: schemas inside them, and rules that never end."""

from __future__ import annotations

import json

import pytest

from tests.core.decode.constraints.engines import accepts
from vt_core.decode.constraints import grammar_option
from vt_core.decode.constraints.lark import check_ends, with_enforced_schemas
from vt_core.errors import ConstraintError

LAYOUT = {"whitespace_flexible": False}


@pytest.mark.parametrize(
    ("lark", "rule"),
    [
        ('start: "a" start', "start"),
        ("start: a\na: b\nb: a", "start"),
        ('start: "x" | a\na: "c" a | "d" a', "a"),
        ('start: "a" b?\nb: "x" b', "b"),
        ('start: ("a" (start | start start))', "start"),
        ("start: a{2,3}\na: /x/ a", "start"),
        ('start: A+ start // end\nA: "a"', "start"),
        ('?start: "a".."z" start\n', "start"),
        ('start: "x"\nother[capture]: "a" other', "other"),
        ('start: "x"\nlong_name.2: "a" long_name', "long_name"),
        ('%ignore " "\nstart: <[5]> %regex {"substring_chars": "ab"} %json {"type": "null"} start', "start"),
    ],
)
def test_a_rule_that_never_ends_is_refused(lark, rule):
    with pytest.raises(ConstraintError, match=f"the rule '{rule}' allows no finite text"):
        check_ends(lark)


@pytest.mark.parametrize(
    "lark",
    [
        'start: "a" start | "b"',
        'start: "a" start?',
        'start: "a" start*',
        'start: "a" [start]',
        'start: "a" start{0,2}',
        'start: "a" start{,2}',
        'start: a "x"\na: b |\nb: "(" a ")" | /[a-z"]+/',
        'start: a -> name\n  | "b" start -> other\na: "start"\n',
        'start: "a // start" | "b" start  // start: "a" start\n',
        'start: (A | "b" start)+\nA: "a"i',
        'start: @other "a"',
        # Not read here, and refused by llguidance where it is wrong.
        "start: %lark { start: start }",
        'start: "a" ~ 3 start',
        'start: "a" start{x}',
        'start "a"',
        'start: ("a" start',
        "start: " + "(" * 20_000,
    ],
)
def test_other_rules_are_left_alone(lark):
    check_ends(lark)


def test_a_chain_of_many_rules_is_checked_in_time():
    check_ends("\n".join([f"a{at}: a{at + 1}" for at in range(20_000)] + ['a20000: "x"', "start: a0"]))


def test_schemas_are_enforced_in_full_and_written_on_one_line():
    lark = 'start: "%json {}" %json {"type": "string", "format": "date"} /%json {"x"}/ // %json {"not": {}}'
    changed = with_enforced_schemas(lark, LAYOUT)
    before, after = 'start: "%json {}" %json ', ' /%json {"x"}/ // %json {"not": {}}'
    assert changed.startswith(before) and changed.endswith(after)
    schema = json.loads(changed[len(before) : -len(after)])
    assert schema["x-guidance"] == LAYOUT
    assert schema["format"] == "date" and len(schema["allOf"]) == 2


def test_a_schema_may_say_how_it_is_written():
    lark = 'start: %json {"type": "array", "x-guidance": {"whitespace_flexible": true}}'
    assert accepts(grammar_option(grammar=lark), "[\n1,2]")
    plain = grammar_option(grammar='start: "x" %json {"type": "array"}')
    assert accepts(plain, "x[1, 2]") and not accepts(plain, "x[1,2]") and not accepts(plain, "x[\n1, 2]")


def test_dates_inside_a_grammar_are_dates():
    grammar = grammar_option(grammar='start: "on " %json {"type": "string", "format": "date"}')
    assert accepts(grammar, 'on "2024-02-29"') and not accepts(grammar, 'on "2023-02-29"')


def test_a_text_that_is_forced_without_end_is_refused():
    # The rule has an end as far as the check of rules can see.
    with pytest.raises(ConstraintError, match="grammar cannot be enforced"):
        grammar_option(grammar='start: "a" %lark { start: "a" start }')
