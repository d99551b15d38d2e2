"""Metrics of answers with a form: SQL, and an intent with slots as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.measure.quality.code import code_of
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.scores import Mean, Metric, Statistics


def structured_metrics(preset: str) -> list[Metric]:
    """The metrics of ``sql`` or ``intent``."""
    if preset == "sql":
        definition = "the query is the reference's, but for white space and a final semicolon"
        return [Mean("exact match", definition, same_sql)]
    return [
        Mean("exact match", "the JSON value is the reference's", same_json),
        Mean("intent", "the intent is the reference's", same_intent),
        SlotF1(),
    ]


def same_sql(answer: str, example: Example) -> float:
    """1 if the query is that of a reference, but for white space and a final semicolon, else 0."""
    ours = _query(code_of(answer))
    return float(any(ours == _query(text) for text in example.references))


def _query(text: str) -> list[str]:
    return text.strip().removesuffix(";").split()


def same_json(answer: str, example: Example) -> float:
    """1 if the JSON value is that of a reference, else 0."""
    ours = _value(answer)
    return float(ours is not None and any(ours == _value(text) for text in example.references))


def same_intent(answer: str, example: Example) -> float:
    """1 if the intent is that of a reference, else 0."""
    ours = _intent(answer)
    return float(ours is not None and any(ours == _intent(text) for text in example.references))


class SlotF1(Metric):
    """F1 of the slots of all examples together; the first reference counts."""

    name = "slot F1"

    def definition(self) -> str:
        return "a slot is right if its name and value are the reference's; over all slots (micro)"

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> Statistics:
        counts = []
        for answer, example in zip(answers, examples, strict=True):
            ours, theirs = _slots(answer), _slots(example.references[0])
            counts.append([(ours & theirs).total(), ours.total(), theirs.total()])
        return np.array(counts, np.float64).reshape(-1, 3)

    def score(self, sums: npt.NDArray[np.float64]) -> float:
        right, ours, theirs = sums
        return float(200 * right / (ours + theirs)) if ours + theirs else 100.0


def _value(answer: str) -> Any:
    """The JSON value of an answer; None if it is not JSON."""
    try:
        return json.loads(code_of(answer))
    except (ValueError, RecursionError):
        return None


def _intent(answer: str) -> Any:
    value = _value(answer)
    return value.get("intent") if isinstance(value, dict) else None


def _slots(answer: str) -> Counter[tuple[str, str]]:
    value = _value(answer)
    slots = value.get("slots") if isinstance(value, dict) else None
    if not isinstance(slots, dict):
        return Counter()
    return Counter((name, json.dumps(text)) for name, text in slots.items())
