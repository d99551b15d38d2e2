"""An evaluation from end to end: a model, its task and rows in; predictions, figures and a report out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vt_core.bench.machine import machine, versions
from vt_core.errors import DataError, OptionError
from vt_core.evaluation.examples import Example
from vt_core.evaluation.metrics import metrics_of
from vt_core.evaluation.predictions import Predictions
from vt_core.evaluation.pruning import Pruning
from vt_core.evaluation.results import CONFIDENCE, FORMAT, RESAMPLES, answered, figures
from vt_core.evaluation.running import Vocabularies, answer_all, named_ids
from vt_core.evaluation.sandbox import protections
from vt_core.evaluation.variants import VARIANTS
from vt_core.json_fields import write_atomically
from vt_core.model import Model
from vt_core.profile import Profiler, Stages
from vt_core.profile.layout import BadRow, Layout
from vt_core.profile.readers import read_chunks
from vt_core.profile.tally import is_blank, load_tokenizer, parsed
from vt_core.task import TaskVocabulary

PRUNED_TOKENIZER = "pruned-tokenizer.json"
LIBRARIES = ("tokenizers", "sacrebleu", "rouge-score")

LoadModel = Callable[[bool], Model]
"""A model with its full head, or with a reduced one."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated. `generation` are options of `Model.generate`."""

    preset: str
    layout: Layout
    data: tuple[Path, ...]
    variants: tuple[str, ...]
    out: Path
    tasks: tuple[Path, ...] = ()
    profile_data: tuple[Path, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    tokenize: str | None = None
    seed: int = 0
    minimum: int = 20
    command: str = ""


def evaluate(
    plan: Plan, examples: Sequence[Example], load: LoadModel, on_answer: Callable[[], object]
) -> dict[str, Any]:
    """Lets every variant answer, and returns what `results.json` holds.

    Raises OptionError, DataError or another VtError for what cannot be used.
    """
    metrics = metrics_of(plan.preset, examples, plan.tokenize)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{plan.out}: cannot be made a folder ({error.strerror}).") from error
    model = load(False)
    vocabularies, about = prepare(plan, model)
    settings = {
        **about["settings"],
        "data": [[path.name, _digest(path)] for path in plan.data],
        "inputs": list(plan.layout.inputs),
        "outputs": list(plan.layout.outputs),
        "prompt": plan.layout.prompt,
        **plan.generation,
    }
    with closing(Predictions(plan.out, settings)) as predictions:
        arguments = (vocabularies, examples, predictions, plan.generation, on_answer)
        reduced = [name for name in plan.variants if not VARIANTS[name].full]
        for name in reduced:
            answer_all(name, model, *arguments)
        del model  # two models need not be in memory at once
        if len(reduced) < len(plan.variants):
            answer_all(plan.variants[0], load(True), *arguments)
        kept, records = answered(plan.variants, examples, predictions)
    if not kept:
        raise DataError(f"The model refused every prompt: {_refusal(predictions, plan, examples)}")
    return {
        "format": FORMAT,
        "command": plan.command,
        "machine": machine(),
        "versions": versions(settings["backend"], LIBRARIES),
        "model": about["model"],
        "vocab_rows": about["vocab_rows"],
        "task": plan.preset,
        "vocabulary": about["vocabulary"],
        "pruning": about["pruning"],
        "settings": settings,
        "sandbox": None if examples[0].tests is None else list(protections()),
        "n": len(kept),
        "left_out": len(examples) - len(kept),
        "minimum": plan.minimum,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": plan.seed,
        "variants": figures(metrics, kept, records, about["vocab_rows"], plan.seed),
        "metrics": {metric.name: metric.definition() for metric in metrics},
    }


def prepare(plan: Plan, model: Model) -> tuple[Vocabularies, dict[str, Any]]:
    """The vocabularies of a plan, and what is said of them and of the model."""
    manifest = model.directory.manifest
    tasks = tuple(TaskVocabulary.load(path, model.tokenizer.path) for path in plan.tasks)
    if plan.profile_data and not tasks:
        tasks = (_profiled(plan, model),)
    corpus, pruned, pruning = None, None, None
    if any(VARIANTS[name].static == "corpus" for name in plan.variants):
        tokens = corpus_ids(plan, model)
        cut = Pruning(model.tokenizer.path, manifest.vocab_rows, tokens)
        corpus = named_ids(model, "corpus", cut.ids)
        pruned = plan.out / PRUNED_TOKENIZER
        write_atomically(pruned, cut.tokenizer_json())
        pruning = {"corpus_ids": len(tokens), "kept_ids": len(cut.ids)}
    union = TaskVocabulary.union(tasks) if tasks else None
    about = {
        "model": f"{manifest.source.name} ({manifest.model_type})",
        "vocab_rows": manifest.vocab_rows,
        "vocabulary": None if union is None else _told(union),
        "pruning": pruning,
        "settings": {
            "model": [asdict(info)["checksum"] for info in manifest.tables.values()],
            "backend": model.backend,
            "device": model.decoder.device,
            "dtype": model.decoder.dtype,
            "static": None if union is None else _digest_of(union.ids.tobytes()),
            "corpus": None if corpus is None else _digest_of(corpus.ids.tobytes()),
        },
    }
    return Vocabularies(tasks, corpus, pruned), about


def _told(task: TaskVocabulary) -> dict[str, Any]:
    return {"name": task.name, "ids": len(task.ids), "source": [dict(entry) for entry in task.source]}


def _profiled(plan: Plan, model: Model) -> TaskVocabulary:
    """The task vocabulary that `profile` makes by default."""
    manifest = model.directory.manifest
    profiler = Profiler(model.tokenizer.path, manifest.vocab_rows, manifest.source.name, plan.layout)
    return profiler.select(profiler.count(plan.profile_data), Stages(), name=plan.preset)


def corpus_ids(plan: Plan, model: Model) -> list[int]:
    """Sorted ids of all prompts, as the model is given them, and outputs of the profile data."""
    outputs = load_tokenizer(model.tokenizer.path)
    found: set[int] = set()
    for file in plan.profile_data:
        for chunk in read_chunks(file):
            for index, row in enumerate(chunk.rows):
                if is_blank(row):
                    continue
                try:
                    prompt, output = plan.layout.texts(parsed(row))
                except BadRow as error:
                    raise DataError(f"{chunk.where(index)}: {error}.") from None
                how = {key: plan.generation[key] for key in ("raw", "system") if key in plan.generation}
                found.update(model.encode(prompt, **how).tolist())
                found.update(outputs.encode(output, add_special_tokens=False).ids)
    return sorted(found)


def _refusal(predictions: Predictions, plan: Plan, examples: Sequence[Example]) -> str:
    records = (predictions.get(name, example.row) for name in plan.variants for example in examples)
    return next(record["refused"] for record in records if record is not None and "refused" in record)


def _digest(path: Path) -> str:
    return _digest_of(path.read_bytes())


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
