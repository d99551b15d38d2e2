"""The vocabularies that variants are given: the task's, and the corpus' with its pruned tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.files.json_files import write_atomically
from vt_core.measure.quality.pruning import Pruning
from vt_core.measure.quality.variants import Variant
from vt_core.model import Model
from vt_core.profile import Profiler, Stages
from vt_core.profile.chunk_counts import load_tokenizer
from vt_core.profile.row_format import RowFormat
from vt_core.profile.rows import each_row
from vt_core.vocab.active import Ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Static pruning: the ids that are left, and a tokenizer that knows no others."""

    task: TaskVocabulary
    tokenizer_json: Path
    tokens: int
    """Ids that the corpus itself was written with; the others are needed to spell them, and anything else."""


@dataclass(frozen=True)
class Vocabularies:
    """What the heads of the variants may hold."""

    tasks: tuple[TaskVocabulary, ...]
    """Their union is the static set; empty: the rank prior is."""
    corpus: Corpus | None

    def use(self, model: Model, variant: Variant) -> None:
        """Makes a model's head and tokenizer those of a variant; nothing of another one stays."""
        pruned = self.corpus if variant.static == "corpus" else None
        model.tokenizer = Tokenizer(model.directory.path, None if pruned is None else pruned.tokenizer_json)
        model.forget_learned()
        if pruned is not None:
            model.set_task(pruned.task)
        elif variant.static == "none":
            # Special tokens are active whatever the task.
            model.set_task(_of_ids(model, "none", np.empty(0, np.int64)))
        else:
            model.set_task(*self.tasks)


def task_vocabularies(
    model: Model, tasks: Sequence[Path], data: Sequence[Path], layout: RowFormat, name: str
) -> tuple[TaskVocabulary, ...]:
    """Those of files; without any, the one that `profile` makes of the data; without both, none."""
    if tasks or not data:
        return tuple(TaskVocabulary.load(path, model.tokenizer.path) for path in tasks)
    manifest = model.directory.manifest
    profiler = Profiler(model.tokenizer.path, manifest.vocab_rows, manifest.source.name, layout)
    return (profiler.select(profiler.count(data), Stages(), name=name),)


def corpus_vocabulary(
    model: Model, data: Sequence[Path], layout: RowFormat, encoding: Mapping[str, Any], tokenizer_json: Path
) -> Corpus:
    """Cuts the tokenizer to all prompts, as the model is given them, and outputs of the data.

    `encoding` are options of `Model.encode`. Writes the pruned tokenizer to `tokenizer_json`.
    """
    outputs = load_tokenizer(model.tokenizer.path)
    found: set[int] = set()
    for prompt, output in each_row(data, layout.texts):
        found.update(model.encode(prompt, **encoding).tolist())
        found.update(outputs.encode(output, add_special_tokens=False).ids)
    cut = Pruning(model.tokenizer.path, model.directory.manifest.vocab_rows, found)
    write_atomically(tokenizer_json, cut.tokenizer_json())
    return Corpus(_of_ids(model, "corpus", cut.ids), tokenizer_json, len(found))


def _of_ids(model: Model, name: str, ids: Ids) -> TaskVocabulary:
    """Sorted ids as a task vocabulary of a model."""
    manifest = model.directory.manifest
    counts = np.zeros(len(ids), np.int64)
    return TaskVocabulary(name, manifest.tokenizer_digest, manifest.vocab_rows, ids, counts)
