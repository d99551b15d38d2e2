"""An evaluation from end to end: a model, its task and rows in; what `results.json` holds out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vt_core.errors import OptionError
from vt_core.measure.bench.machine import machine, versions
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions
from vt_core.measure.quality.results import CONFIDENCE, FORMAT, RESAMPLES, answered, figures
from vt_core.measure.quality.running import Questions
from vt_core.measure.quality.sandbox import protections
from vt_core.measure.quality.scores import metrics_of
from vt_core.measure.quality.variants import VARIANTS
from vt_core.measure.quality.vocabularies import Vocabularies, corpus_vocabulary, task_vocabularies
from vt_core.model import Model
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.task import TaskVocabulary

PRUNED_TOKENIZER = "pruned-tokenizer.json"
LIBRARIES = ("tokenizers", "sacrebleu", "rouge-score")

LoadModel = Callable[[bool], Model]
"""A model with its full head, or with a reduced one."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated. `generation` are options of `Model.generate`, `minimum` the rows that suffice."""

    preset: str
    layout: RowFormat
    data: tuple[Path, ...]
    variants: tuple[str, ...]
    out: Path
    seed: int
    minimum: int
    tasks: tuple[Path, ...] = ()
    profile_data: tuple[Path, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    tokenize: str | None = None
    command: str = ""


def evaluate(
    plan: Plan, examples: Sequence[Example], load: LoadModel, on_answers: Callable[[int], object]
) -> dict[str, Any]:
    """Lets every variant answer, and returns what `results.json` holds.

    `on_answers` is told how many answers have been added. Raises OptionError, DataError or another VtError
    for what cannot be used.
    """
    metrics = metrics_of(plan.preset, examples, plan.tokenize)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{plan.out}: cannot be made a folder ({error.strerror}).") from error
    model = load(False)
    vocabularies = _vocabularies(plan, model)
    settings = _settings(plan, model, vocabularies)
    manifest = model.directory.manifest
    with closing(Predictions(plan.out, settings)) as predictions:
        questions = Questions(examples, plan.generation, vocabularies, predictions, on_answers)
        whole = [name for name in plan.variants if VARIANTS[name].full]
        for name in plan.variants:
            if name not in whole:
                questions.ask(name, model)
        del model  # two models need not be in memory at once
        for name in whole:
            questions.ask(name, load(True))
    kept, records = answered(plan.variants, examples, predictions)
    corpus = vocabularies.corpus
    return {
        "format": FORMAT,
        "command": plan.command,
        "machine": machine(),
        "versions": versions(settings["backend"], LIBRARIES),
        "model": f"{manifest.source.name} ({manifest.model_type})",
        "vocab_rows": manifest.vocab_rows,
        "task": plan.preset,
        "vocabulary": _told(vocabularies.tasks),
        "pruning": None
        if corpus is None
        else {"corpus_ids": corpus.tokens, "kept_ids": len(corpus.task.ids)},
        "settings": settings,
        "sandbox": None if examples[0].tests is None else list(protections()),
        "n": len(kept),
        "left_out": len(examples) - len(kept),
        "minimum": plan.minimum,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": plan.seed,
        "variants": figures(metrics, kept, records, manifest.vocab_rows, plan.seed),
        "metrics": {metric.name: metric.definition() for metric in metrics},
    }


def _vocabularies(plan: Plan, model: Model) -> Vocabularies:
    tasks = task_vocabularies(model, plan.tasks, plan.profile_data, plan.layout, plan.preset)
    if not any(VARIANTS[name].static == "corpus" for name in plan.variants):
        return Vocabularies(tasks, None)
    encoding: dict[str, Any] = {
        key: plan.generation[key] for key in ("raw", "system") if key in plan.generation
    }
    out = plan.out / PRUNED_TOKENIZER
    return Vocabularies(tasks, corpus_vocabulary(model, plan.profile_data, plan.layout, encoding, out))


def _settings(plan: Plan, model: Model, vocabularies: Vocabularies) -> dict[str, Any]:
    """What answers depend on: those that were made with other settings do not count."""
    union = TaskVocabulary.union(vocabularies.tasks) if vocabularies.tasks else None
    corpus = vocabularies.corpus
    return {
        "model": [table.checksum for table in model.directory.manifest.tables.values()],
        "backend": model.backend,
        "device": model.decoder.device,
        "dtype": model.decoder.dtype,
        "static": None if union is None else _digest(union.ids.tobytes()),
        "corpus": None if corpus is None else _digest(corpus.task.ids.tobytes()),
        "data": [[path.name, _digest(path.read_bytes())] for path in plan.data],
        "inputs": list(plan.layout.inputs),
        "outputs": list(plan.layout.outputs),
        "prompt": plan.layout.prompt,
        **plan.generation,
    }


def _told(tasks: Sequence[TaskVocabulary]) -> dict[str, Any] | None:
    if not tasks:
        return None
    task = TaskVocabulary.union(tasks)
    return {"name": task.name, "ids": len(task.ids), "source": [dict(entry) for entry in task.source]}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
