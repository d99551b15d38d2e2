"""``eval``: let every variant answer the same rows, each variant in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.job import Job
from vt_core.measure.output import EVAL_FORMAT
from vt_core.measure.quality.comparison import answered, compare
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions
from vt_core.measure.quality.sandbox import PROTECTIONS
from vt_core.measure.quality.scores import Metric, metrics_of
from vt_core.measure.questions import Questions, digest
from vt_core.measure.variants import Variant
from vt_core.measure.vocabularies import Pruned, of_ids, profiled
from vt_core.measure.worker import Worker
from vt_core.vocab.collection import find_task
from vt_core.vocab.task import TaskVocabulary

#: File of the pruned tokenizer, beside the results.
PRUNED_TOKENIZER = "pruned-tokenizer.json"
#: Fields of a generation that the predictions keep.
KEPT = (
    *("text", "token_ids", "finish_reason", "prompt_tokens", "generated_tokens"),
    *("static_rows", "learned_rows", "dynamic_rows", "rescued"),
)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Questions):
    """What is evaluated, and how."""

    directory: ModelDirectory
    variants: Sequence[Variant]
    #: Files of task vocabularies; empty: profiled from ``profile_data``, or the rank prior.
    tasks: Sequence[Path] = ()
    profile_data: Sequence[Path] = ()

    @cached_property
    def vocabularies(self) -> list[TaskVocabulary]:
        """Task vocabularies whose union is the static set; empty: the rank prior is."""
        if self.tasks or not self.profile_data:
            files = [find_task(task, self.directory.manifest.tokenizer_digest) for task in self.tasks]
            loaded = [TaskVocabulary.load(path, self.directory.tokenizer_path) for path in files]
            for task in loaded:
                task.check(self.directory.manifest.tokenizer_digest, self.directory.manifest.vocab_rows)
            return loaded
        return [profiled(self.directory, self.profile_data, self.layout, self.preset)]

    @cached_property
    def pruned(self) -> Pruned | None:
        """Static pruning, where a variant needs it."""
        if all(variant.static != "corpus" for variant in self.variants):
            return None
        return Pruned.to_corpus(
            self.directory, self.profile_data, self.layout, raw=self.raw, system=self.system
        )


def evaluate(
    plan: Evaluation, examples: Sequence[Example], scratch: Path, watch: Callable[[int], object]
) -> dict[str, Any]:
    """Let every variant answer every example, each variant in a process of its own.

    Answers are kept in ``predictions.jsonl`` of the output folder, where the same settings resume.

    Args:
        plan: what is evaluated.
        examples: the rows.
        scratch: folder for temporary files.
        watch: called with the number of answers that were added.

    Returns:
        The results, as results.json holds them.

    Raises:
        VtError: an input cannot be used, or a variant fails.
    """
    metrics = metrics_of(plan.preset, examples, plan.tokenize)
    jobs = [_job(plan, variant, scratch) for variant in plan.variants]
    predictions: Predictions | None = None
    settings: dict[str, Any] = {}
    with ExitStack() as stack:
        for job in jobs:
            missing = [] if predictions is None else predictions.missing(job.name, examples)
            if predictions is not None and not missing:
                watch(len(examples))
                continue
            with Worker(job) as worker:
                if predictions is None:  # only a loaded model knows its device and float type
                    settings = text_settings(plan, worker.about)
                    predictions = stack.enter_context(closing(Predictions(plan.out, settings)))
                    missing = predictions.missing(job.name, examples)
                watch(len(examples) - len(missing))
                for example in missing:
                    answer = plan.answer(worker, example, KEPT)
                    predictions.add({"variant": job.name, "row": example.row, **answer})
                    watch(1)
    assert predictions is not None, "there is at least one variant"
    return _results(plan, metrics, examples, settings, predictions)


def _job(plan: Evaluation, variant: Variant, scratch: Path) -> Job:
    """The job of a variant; writes the vocabularies and the tokenizer that it needs into ``scratch``."""
    tasks, tokenizer = plan.vocabularies, None
    if variant.static == "none":
        # Special tokens stay active whatever the task.
        tasks = [of_ids(plan.directory, "none", np.empty(0, np.int64))]
    elif variant.static == "corpus":
        assert plan.pruned is not None
        tasks = [plan.pruned.task]
        tokenizer = str(scratch / PRUNED_TOKENIZER)
        Path(tokenizer).write_bytes(plan.pruned.tokenizer_json)
    files = [scratch / f"{variant.name}-{index}.vt.json" for index in range(len(tasks))]
    for task, file in zip(tasks, files, strict=True):
        task.save(file)
    return Job.of(
        variant,
        backend=plan.backend,
        model=str(plan.directory.path),
        task=[] if variant.head == "full" else [str(file) for file in files],
        tokenizer=tokenizer,
        device=plan.device,
        dtype=plan.dtype,
        quantize=plan.quantize,
    )


def text_settings(plan: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a text depends on; ``about`` is that of a worker.

    Answers of a run with other settings are not reused.
    """
    manifest = asdict(plan.directory.manifest)
    manifest["source"] = manifest["source"]["fingerprint"]  # not the name that the user gave
    union = TaskVocabulary.union(plan.vocabularies) if plan.vocabularies else None
    return {
        "model": digest(json.dumps(manifest, sort_keys=True).encode()),
        "static": None if union is None else digest(union.ids.tobytes()),
        "corpus": None if plan.pruned is None else digest(plan.pruned.task.ids.tobytes()),
        **plan.settings(about),
    }


def _results(
    plan: Evaluation,
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    settings: dict[str, Any],
    predictions: Predictions,
) -> dict[str, Any]:
    kept, records = answered([variant.name for variant in plan.variants], examples, predictions)
    manifest, pruned = plan.directory.manifest, plan.pruned
    task = TaskVocabulary.union(plan.vocabularies) if plan.vocabularies else None
    variants = compare(metrics, kept, records, manifest.vocab_rows, plan.seed)
    return {
        "format": EVAL_FORMAT,
        **plan.facts(settings, len(examples), len(kept)),
        "model": f"{manifest.source.name} ({manifest.model_type})",
        "vocab_rows": manifest.vocab_rows,
        "vocabulary": None
        if task is None
        else {"name": task.name, "ids": len(task.ids), "source": [dict(entry) for entry in task.source]},
        "pruning": None
        if pruned is None
        else {"corpus_ids": pruned.corpus_ids, "kept_ids": len(pruned.task.ids)},
        "sandbox": None if examples[0].tests is None else list(PROTECTIONS),
        "variants": variants,
        # After the scores: sacreBLEU's definition counts the references.
        "metrics": {metric.name: metric.definition() for metric in metrics},
    }
