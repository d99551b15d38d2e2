from __future__ import annotations

from typing import Any

import pytest

from vt_core.errors import OptionError
from vt_core.profile.row_format import PRESETS, BadRow, RowFormat, make_row_format


@pytest.mark.parametrize(
    ("preset", "row", "texts"),
    [
        ("math", {"question": "1+1?", "answer": "2"}, ("1+1?", "2")),
        ("math", {"problem": "1+1?", "solution": "2"}, ("1+1?", "2")),
        ("qa", {"context": "c", "question": "q", "answers": {"text": ["a", "b"]}}, ("c\n\nq", "a")),
        ("qa", {"context": "c", "question": "q", "answer": "a"}, ("c\n\nq", "a")),
        (
            "summarization",
            {"document": "d", "summary": "s"},
            ("Summarize the following article in one sentence.\n\nd", "s"),
        ),
        ("code", {"prompt": "def f", "canonical_solution": "pass"}, ("def f", "pass")),
        ("translation", {"source": "yes", "target": "ja"}, ("yes", "ja")),
    ],
)
def test_presets_read_public_data_sets(preset: str, row: dict[str, Any], texts: tuple[str, str]) -> None:
    assert make_row_format(preset).texts(row) == texts


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_every_preset_reads_input_and_output(preset: str | None) -> None:
    prompt, output = make_row_format(preset).texts({"input": "{in}", "output": "out"})
    assert "{in}" in prompt
    assert output == "out"


def test_given_fields_replace_those_of_the_preset() -> None:
    row_format = make_row_format("math", "my question", "t.en", "Q: {input} {input}!")
    assert row_format.texts({"my question": "q", "question": "x", "t": {"en": "a"}}) == ("Q: q q!", "a")


def test_field_with_a_dot_in_its_name_precedes_a_path() -> None:
    assert make_row_format(None, "a.b", "a.b").texts({"a.b": "name", "a": {"b": "path"}}) == ("name", "name")


def test_braces_in_texts_are_not_replaced() -> None:
    row = {"context": "{question}", "question": "{context}", "answer": "{input}"}
    assert make_row_format("qa").texts(row) == ("{question}\n\n{context}", "{input}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "x"}, "lacks the input, {input}"),
        ({"input": "x"}, "lacks the output, output"),
        ({"input": None, "output": "x"}, "lacks the input"),
        ({"input": "x", "output": 3}, "field 'output' holds 3, not text"),
        ({"input": ["x"], "output": "y"}, r"field 'input' holds \['x'\], not text"),
        ({"input": "x", "output": "\ud800"}, "field 'output' holds half of a surrogate pair"),
        (["x"], "not a JSON object with fields"),
        (3, "not a JSON object with fields"),
    ],
)
def test_bad_row_error_gives_the_reason(row: object, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        RowFormat().texts(row)


@pytest.mark.parametrize("path", ["a.0.b", "a.1", "b.c", "a.x", "a.0.b.c"])
def test_path_without_value_is_a_missing_field(path: str) -> None:
    with pytest.raises(BadRow, match="lacks the output"):
        make_row_format(None, None, path).texts({"input": "x", "a": ["y"], "b": "z"})


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(BadRow) as caught:
        RowFormat().texts({"input": list(range(1000)), "output": ""})
    assert len(str(caught.value)) < 100


def test_unknown_preset_error_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match="'maths' is not known; known presets are code, intent"):
        make_row_format("maths")


def test_template_without_input_is_refused() -> None:
    with pytest.raises(OptionError, match=r"does not contain \{input\}"):
        make_row_format(template="Translate:")
