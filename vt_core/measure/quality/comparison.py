"""From predictions to scores: what results.json says of each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vt_core.errors import DataError
from vt_core.measure.bootstrap import Weights, draw_weights, estimate, estimate_difference
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions, Record
from vt_core.measure.quality.scores import Metric, Statistics
from vt_core.measure.variants import EVAL_VARIANTS, FULL, REFERENCE


def answered(
    names: Sequence[str], examples: Sequence[Example], predictions: Predictions
) -> tuple[list[Example], dict[str, list[Record]]]:
    """The examples that no variant refused, and each variant's answers to them, in the same order.

    Raises:
        DataError: there is none.
    """
    records = {name: [predictions.get(name, example.row) for example in examples] for name in names}
    asked = [
        index
        for index in range(len(examples))
        if all(record is not None and "text" in record for record in (records[n][index] for n in names))
    ]
    if not asked:
        refused = (
            record["refused"] for own in records.values() for record in own if record and "refused" in record
        )
        raise DataError(f"No row could be asked of every variant: {next(refused)}")
    kept = {name: [record for i in asked if (record := records[name][i]) is not None] for name in names}
    return [examples[index] for index in asked], kept


def compare(
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    records: Mapping[str, Sequence[Record]],
    vocab_rows: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One entry for each variant, all over the same examples, with differences to the reference."""
    weights = draw_weights(len(examples), seed=seed)
    scored = scores(metrics, examples, records, REFERENCE, weights)
    return [
        {
            "name": name,
            "title": EVAL_VARIANTS[name].title,
            "n": len(own),
            **_rows(name, own, vocab_rows),
            **_texts(own, records.get(REFERENCE)),
            "metrics": scored[name],
        }
        for name, own in records.items()
    ]


def _rows(name: str, records: Sequence[Record], vocab_rows: int) -> dict[str, Any]:
    """Rows of the head: static ones, and the mean of those that learning and the request added."""
    if EVAL_VARIANTS[name].head == FULL:
        return {"static_rows": vocab_rows, "dynamic_rows": 0.0, "kept": 1.0}
    static = records[0]["static_rows"]
    added = float(np.mean([record["learned_rows"] + record["dynamic_rows"] for record in records]))
    return {"static_rows": static, "dynamic_rows": added, "kept": (static + added) / vocab_rows}


def _texts(records: Sequence[Record], reference: Sequence[Record] | None) -> dict[str, Any]:
    same = None
    if reference is not None:
        pairs = zip(records, reference, strict=True)
        same = sum(ours["text"] == theirs["text"] for ours, theirs in pairs)
    return {
        "same_text": same,
        "finished": sum(record["finish_reason"] == "stop" for record in records),
        "prompt_tokens": float(np.mean([record["prompt_tokens"] for record in records])),
        "generated_tokens": float(np.mean([record["generated_tokens"] for record in records])),
    }


def scores(
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    records: Mapping[str, Sequence[Record]],
    reference: str,
    weights: Weights,
) -> dict[str, dict[str, Any]]:
    """For each name in `records`, each metric with its interval, and its difference to that of the reference
    where there is one.
    """
    statistics = {
        name: [metric.statistics([record["text"] for record in own], examples) for metric in metrics]
        for name, own in records.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for name, own in statistics.items():
        theirs = None if name == reference else statistics.get(reference)
        found[name] = {
            metric.name: _score(metric, ours, None if theirs is None else theirs[at], weights)
            for at, (metric, ours) in enumerate(zip(metrics, own, strict=True))
        }
    return found


def _score(metric: Metric, ours: Statistics, theirs: Statistics | None, weights: Weights) -> dict[str, Any]:
    difference = None
    if theirs is not None:
        difference = asdict(estimate_difference(metric.score, ours, theirs, weights))
    return {**asdict(estimate(metric.score, ours, weights)), "difference": difference}
