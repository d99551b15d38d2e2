"""Messages are one short printable line."""

from __future__ import annotations

import inspect

from vt_core import errors
from vt_core.errors import MESSAGE_LIMIT, ModelError, VtError, escape_controls, shorten


def test_control_characters_are_escaped():
    assert str(ModelError("a\x1b[31mred\x07 b\u202ec\udcff")) == "a\\x1b[31mred\\x07 b\\u202ec\\udcff"
    assert escape_controls("plain text, caf\u00e9, \u4f60\u597d") == "plain text, caf\u00e9, \u4f60\u597d"


def test_messages_are_one_line_of_limited_length():
    text = str(VtError("start\nmiddle\n" + "x" * 300_000 + " end"))
    assert "\n" not in text and len(text) < MESSAGE_LIMIT + 10
    assert text.startswith("start middle") and text.endswith(" end")


def test_values_are_shortened():
    assert shorten([1, "a"]) == "[1, 'a']"
    assert len(shorten({"a": [["x" * 10_000] * 100] * 100})) <= 100
    assert len(shorten("x" * 10_000, 40)) <= 40
    assert len(shorten(10**10_000)) <= 100


def test_the_tree_at_the_top_names_every_class():
    classes = [name for name, item in vars(errors).items() if inspect.isclass(item)]
    assert errors.__doc__ is not None
    assert all(f" {name} " in errors.__doc__ or f"    {name}\n" in errors.__doc__ for name in classes)
