"""Task vocabularies that variants need beyond those given: of another size, of a pruned tokenizer, empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vt_core.errors import OptionError
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.prompts import encode
from vt_core.measure.quality.pruning import Pruning
from vt_core.profile import Profiler, Stages
from vt_core.profile.row_format import RowFormat
from vt_core.profile.rows import each_row
from vt_core.types import Ids
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer, load_tokenizer


def ranked(table: TokenTable, task: TaskVocabulary | None) -> Ids:
    """All ordinary ids, the most needed first: by counts of the task, then single bytes, then by rank."""
    of_task = np.empty(0, np.int64) if task is None else task.ids[np.lexsort((task.ids, -task.counts))]
    order = np.concatenate([of_task, rank_prior(table, 0), table.ordinary_ids()])
    first = np.sort(np.unique(order, return_index=True)[1])
    ids: Ids = order[first]
    return ids


def sized(directory: ModelDirectory, tasks: Sequence[TaskVocabulary], rows: int) -> TaskVocabulary:
    """A task vocabulary of that many rows, the most needed ids of ``tasks`` first; special ids are extra.

    Raises:
        OptionError: the model has fewer ordinary ids.
    """
    table = TokenTable.load(directory.tokenizer_path)
    task = TaskVocabulary.union(tasks) if tasks else None
    ids = ranked(table, task)
    ids = ids[ids < directory.manifest.vocab_rows]
    if rows > len(ids):
        raise OptionError(f"{rows} static rows are asked for, but the tokenizer has {len(ids)} ordinary ids")
    chosen = np.sort(ids[:rows])
    made = of_ids(directory, f"{rows} rows", chosen)
    if task is None:
        return made
    _, mine, theirs = np.intersect1d(chosen, task.ids, return_indices=True)
    made.counts[mine] = task.counts[theirs]
    return replace(task, name=made.name, ids=chosen, counts=made.counts, stages={}, held_out=None)


def of_ids(directory: ModelDirectory, name: str, ids: Ids) -> TaskVocabulary:
    """Sorted ids as a task vocabulary of a model."""
    manifest = directory.manifest
    counts = np.zeros(len(ids), np.int64)
    return TaskVocabulary(name, manifest.tokenizer_digest, manifest.vocab_rows, ids, counts)


def profiled(directory: ModelDirectory, data: Sequence[Path], layout: RowFormat, name: str) -> TaskVocabulary:
    """The task vocabulary that ``profile`` makes of the data with default options."""
    manifest = directory.manifest
    profiler = Profiler(directory.tokenizer_path, manifest.vocab_rows, manifest.source.name, layout)
    return profiler.select(profiler.count(data), Stages(), name=name)


@dataclass(frozen=True)
class Pruned:
    """Static pruning to a corpus: the ids that are left, and a tokenizer that has no others."""

    task: TaskVocabulary
    tokenizer_json: bytes
    #: Number of ids that occur in the corpus; the others of ``task`` spell them, and any other text.
    corpus_ids: int

    @classmethod
    def to_corpus(
        cls,
        directory: ModelDirectory,
        data: Sequence[Path],
        layout: RowFormat,
        *,
        raw: bool = False,
        system: str | None = None,
    ) -> Pruned:
        """Prune to the prompts, encoded as the model gets them, and the outputs of the data."""
        prompts, outputs = Tokenizer(directory.path), load_tokenizer(directory.tokenizer_path)
        found: set[int] = set()
        for prompt, output in each_row(data, layout.texts, layout.columns):
            found.update(encode(prompts, prompt, raw=raw, system=system))
            found.update(outputs.encode(output, add_special_tokens=False).ids)
        pruning = Pruning(directory.tokenizer_path, directory.manifest.vocab_rows, found)
        return cls(of_ids(directory, "corpus", pruning.ids), pruning.tokenizer_json(), len(found))
