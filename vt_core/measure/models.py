"""``eval --compare``: several models answer the same rows in turn; quality, and speed per character."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.bootstrap import Floats, Weights, draw_weights, estimate, ratio_interval
from vt_core.measure.job import Job
from vt_core.measure.quality.comparison import answered, scores
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions, Record
from vt_core.measure.quality.scores import Metric, metrics_of
from vt_core.measure.questions import Questions, digest
from vt_core.measure.variants import Variant
from vt_core.measure.worker import Worker

MODELS_FORMAT = "vt-eval-models/1"
#: Fields of a generation that the predictions keep; ``e2e_s``: seconds of the whole call.
KEPT = ("text", "token_ids", "finish_reason", "generated_tokens", "e2e_s")


@dataclass(frozen=True)
class Candidate:
    """A model that is compared, with exact decoding."""

    name: str
    directory: ModelDirectory
    draft_file: Path | None = None  #: n-gram table to draft from; None: nothing is drafted


@dataclass(frozen=True, kw_only=True)
class Comparison(Questions):
    """What is compared, and how."""

    candidates: Sequence[Candidate]  #: the first is the reference

    @property
    def names(self) -> list[str]:
        return [candidate.name for candidate in self.candidates]


def compare_models(
    plan: Comparison, examples: Sequence[Example], watch: Callable[[int], object]
) -> dict[str, Any]:
    """Let every model answer every example, all models in turn on each, each in a process of its own.

    Args:
        watch: called with the number of answers that were added.

    Returns:
        The results, as results.json holds them.

    Raises:
        VtError: an input cannot be used, or a model fails.
    """
    metrics = metrics_of(plan.preset, examples, plan.tokenize)
    with ExitStack() as stack:
        workers = {each.name: stack.enter_context(Worker(_job(plan, each))) for each in plan.candidates}
        settings = _settings(plan, workers[plan.names[0]].about)
        predictions = stack.enter_context(closing(Predictions(plan.out, settings)))
        for worker in workers.values():
            worker.warm_up(examples[0].prompt, **plan.options | {"max_tokens": 4})
        for turn, example in enumerate(examples):
            first = turn % len(plan.names)
            for name in (*plan.names[first:], *plan.names[:first]):
                if predictions.get(name, example.row) is None:
                    answer = plan.answer(workers[name], example, KEPT)
                    predictions.add({"variant": name, "row": example.row, **answer})
                watch(1)
        return _results(plan, metrics, examples, settings, predictions)


def _job(plan: Comparison, candidate: Candidate) -> Job:
    drafted = candidate.draft_file is not None
    return Job.of(
        Variant(candidate.name, "prealloc", draft="ngram" if drafted else "none"),
        backend=plan.backend,
        model=str(candidate.directory.path),
        draft_file=str(candidate.draft_file) if drafted else None,
        device=plan.device,
        dtype=plan.dtype,
        quantize=plan.quantize,
    )


def _settings(plan: Comparison, about: Mapping[str, Any]) -> dict[str, Any]:
    models = {
        each.name: [
            each.directory.manifest.source.fingerprint,
            each.draft_file and digest(each.draft_file.read_bytes()),
        ]
        for each in plan.candidates
    }
    return {"models": models, **plan.settings(about)}


def _results(
    plan: Comparison,
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    settings: dict[str, Any],
    predictions: Predictions,
) -> dict[str, Any]:
    kept, records = answered(plan.names, examples, predictions)
    entries = _entries(plan, metrics, kept, records)
    return {
        "format": MODELS_FORMAT,
        **plan.facts(settings, len(examples), len(kept)),
        "models": entries,
        # After the scores: sacreBLEU's definition counts the references.
        "metrics": {metric.name: metric.definition() for metric in metrics},
    }


def _entries(
    plan: Comparison,
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    records: Mapping[str, Sequence[Record]],
) -> list[dict[str, Any]]:
    """One entry for each model, over the same examples, with differences to the first."""
    weights = draw_weights(len(examples), seed=plan.seed)
    reference = plan.names[0]
    scored = scores(metrics, examples, records, reference, weights)
    return [
        {
            "name": each.name,
            "model": each.directory.manifest.source.name,
            "drafts": each.draft_file is not None,
            "finished": sum(record["finish_reason"] == "stop" for record in records[each.name]),
            **_speed(records[each.name], None if each.name == reference else records[reference], weights),
            "metrics": scored[each.name],
        }
        for each in plan.candidates
    ]


def _speed(own: Sequence[Record], reference: Sequence[Record] | None, weights: Weights) -> dict[str, Any]:
    """Tokens and characters of an answer, and characters per second, also beside those of the reference."""
    ours = _characters(own)
    tokens = np.array([[record["generated_tokens"], 1.0] for record in own])
    rate = estimate(_rate, ours, weights)
    found = {
        "tokens": asdict(estimate(_rate, tokens, weights)),
        "characters": float(ours[:, 0].mean()),
        "characters_per_s": asdict(rate),
        "speed": None,
        "speed_interval": None,
    }
    if reference is not None:
        theirs = _characters(reference)
        if theirs[:, 0].any():
            found["speed"] = rate.value / _rate(theirs.sum(axis=0))
            found["speed_interval"] = ratio_interval(ours, theirs)
    return found


def _characters(records: Sequence[Record]) -> Floats:
    """Characters and seconds of each answer, ``[n, 2]``."""
    return np.array([[len(record["text"]), record["e2e_s"]] for record in records], np.float64)


def _rate(sums: Floats) -> float:
    return float(sums[0] / sums[1])
