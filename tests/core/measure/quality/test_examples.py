"""Rows become examples; bad rows are reported."""

from __future__ import annotations

import json

import pytest

from vt_core.errors import DataError, OptionError
from vt_core.measure.quality.examples import TestFields as Fields
from vt_core.measure.quality.examples import read_examples, task_layout


def rows(tmp_path, *values):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return [path]


def test_squad_rows_have_several_references(tmp_path):
    answers = {"text": ["in Rome", "Rome"], "answer_start": [1, 4]}
    files = rows(tmp_path, {"context": "C", "question": "Where?", "answers": answers})
    (example,) = read_examples(files, task_layout("qa", None, None, None))
    assert example.references == ("in Rome", "Rome")
    assert example.input == "C\n\nWhere?" and example.prompt.startswith("C\n\nWhere?\n\nAnswer with")


def test_fields_template_and_limit(tmp_path):
    files = rows(tmp_path, {"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"})
    layout = task_layout("math", "a", "b", "Q: {input}")
    examples = read_examples(files, layout, limit=2)
    assert [(e.row, e.prompt, e.input, e.references) for e in examples] == [
        (0, "Q: 1", "1", ("2",)),
        (1, "Q: 3", "3", ("4",)),
    ]


def test_translation_must_name_its_language():
    with pytest.raises(OptionError, match="--template 'Translate into Italian"):
        task_layout("translation", None, None, None)
    assert task_layout("translation", None, None, "To German: {input}").prompt == "To German: {input}"


def test_bad_rows_are_reported(tmp_path):
    layout = task_layout("math", None, None, None)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: lacks the output"):
        read_examples(rows(tmp_path, {"input": "a", "output": "1"}, {"input": "b"}), layout)
    with pytest.raises(DataError, match="no row to evaluate"):
        read_examples(rows(tmp_path), layout)


def test_unit_tests_come_from_their_field(tmp_path):
    layout = task_layout("code", None, None, None)
    human = {"prompt": "def f():\n", "canonical_solution": "    pass", "test": "def check(c): c()"}
    (example,) = read_examples(
        rows(tmp_path, human | {"entry_point": "f"}), layout, test_fields=Fields("test")
    )
    assert example.tests == "def check(c): c()\n\ncheck(f)"
    listed = {"input": "write f", "output": "", "tests": ["assert f()", "assert 1"]}
    (example,) = read_examples(rows(tmp_path, listed), layout, test_fields=Fields("tests"))
    assert example.tests == "assert f()\nassert 1"
    for wrong, message in (
        ({"test": None}, "field 'test' holds no unit tests"),
        ({"entry_point": "f); import os; (f"}, "holds 'f.*', not the name of a function"),
    ):
        with pytest.raises(DataError, match=message):
            read_examples(
                rows(tmp_path, human | {"entry_point": "f"} | wrong), layout, test_fields=Fields("test")
            )
