"""Every variant's answer to every example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import PromptError
from vt_core.evaluation.examples import Example
from vt_core.evaluation.predictions import Predictions, Record
from vt_core.evaluation.variants import VARIANTS, Variant
from vt_core.model import Model
from vt_core.task import TaskVocabulary
from vt_core.tokenizer import Tokenizer
from vt_core.vocabulary import Ids


@dataclass(frozen=True)
class Vocabularies:
    """What the variants' heads hold: static rows for each kind, and the tokenizer cut to the corpus."""

    task: tuple[TaskVocabulary, ...]
    """Empty: the rank prior."""
    corpus: TaskVocabulary | None = None
    pruned_tokenizer_json: Path | None = None

    def use(self, model: Model, variant: Variant) -> None:
        """Makes a model's head and tokenizer those of a variant; nothing of another one stays."""
        pruned = variant.static == "corpus"
        model.tokenizer = Tokenizer(model.directory.path, self.pruned_tokenizer_json if pruned else None)
        model.forget_learned()
        if pruned:
            assert self.corpus is not None, "options are checked before"
            model.set_task(self.corpus)
        elif variant.static == "none":
            model.set_task(static_only_specials(model))
        else:
            model.set_task(*self.task)


def static_only_specials(model: Model) -> TaskVocabulary:
    """A task vocabulary without any id: special tokens are always active."""
    return named_ids(model, "none", np.empty(0, np.int64))


def named_ids(model: Model, name: str, ids: Ids) -> TaskVocabulary:
    """Sorted ids as a task vocabulary of a model."""
    manifest = model.directory.manifest
    counts = np.zeros(len(ids), np.int64)
    return TaskVocabulary(name, manifest.tokenizer_digest, manifest.vocab_rows, ids, counts)


def answer_all(
    name: str,
    model: Model,
    vocabularies: Vocabularies,
    examples: Sequence[Example],
    predictions: Predictions,
    options: dict[str, Any],
    on_answer: Callable[[], object],
) -> None:
    """A variant's answers to the examples that it has not answered yet.

    `options` are those of `Model.generate`. A prompt that the model refuses, being too long, is kept as such.
    """
    missing = [example for example in examples if predictions.get(name, example.row) is None]
    if missing:
        vocabularies.use(model, VARIANTS[name])
    for example in missing:
        predictions.add({"variant": name, "row": example.row, **_answer(model, name, example, options)})
        on_answer()


def _answer(model: Model, name: str, example: Example, options: dict[str, Any]) -> Record:
    variant = VARIANTS[name]
    how = {"approximate": not variant.exact, "dynamic": variant.dynamic}
    try:
        result = model.generate(example.prompt, **options, **how)
    except PromptError as error:
        return {"refused": str(error)}
    kept = ("text", "token_ids", "finish_reason", "prompt_tokens", "generated_tokens")
    rows = ("static_rows", "learned_rows", "dynamic_rows", "rescued")
    values = result.to_dict()
    return {key: values[key] for key in (*kept, *rows)}
