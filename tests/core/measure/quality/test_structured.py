"""Scores of SQL, and of an intent with slots."""

from __future__ import annotations

import numpy as np
import pytest

from vt_core.measure.quality.examples import Example, task_layout
from vt_core.measure.quality.scores import metrics_of


def examples(*references):
    return [Example(row, "p", "i", (text,)) for row, text in enumerate(references)]


def scores(preset, answers, references):
    rows = examples(*references)
    found = {}
    for metric in metrics_of(preset, rows):
        assert metric.definition()
        found[metric.name] = metric.score(metric.statistics(answers, rows).sum(axis=0))
    return found


def test_sql_ignores_white_space_and_a_final_semicolon_only():
    references = ["SELECT a FROM b ;", "SELECT a FROM b;", "SELECT a FROM b", "SELECT A"]
    answers = ["SELECT  a\nFROM b;", "```sql\nSELECT a FROM b\n```", "SELECT a FROM c", "select a"]
    assert scores("sql", answers, references) == {"exact match": 50.0}


def test_intents_and_slots_are_compared_as_json_values():
    references = ['{"intent": "A", "slots": {"x": "1", "y": "2"}}'] * 4
    answers = [
        '{"slots": {"y": "2", "x": "1"}, "intent": "A"}',
        '{"intent": "A", "slots": {"x": "1", "y": "3"}}',
        '{"intent": "B", "slots": {}}',
        "no JSON",
    ]
    found = scores("intent", answers, references)
    assert (found["exact match"], found["intent"]) == (25.0, 50.0)
    assert found["slot F1"] == pytest.approx(100 * 2 * 3 / (4 + 8))


@pytest.mark.parametrize("answer", ["[1]", '"A"', "null", '{"intent": null, "slots": [1]}', "[" * 100_000])
def test_other_json_is_wrong(answer):
    found = scores("intent", [answer], ['{"intent": "A", "slots": {"x": "1"}}'])
    assert set(found.values()) == {0.0}


def test_no_slots_on_both_sides_are_right():
    (_, _, metric) = metrics_of("intent", examples('{"intent": "A", "slots": {}}'))
    assert metric.score(np.zeros(3)) == 100.0


@pytest.mark.parametrize(
    ("preset", "row"),
    [("sql", {"question": "q", "query": "o"}), ("intent", {"text": "q", "output": "o"})],
)
def test_presets_know_the_fields_of_public_data(preset, row):
    layout = task_layout(preset, None, None, None)
    assert layout.prompt_text(row).endswith("\n\nq") and layout.references(row) == ("o",)
