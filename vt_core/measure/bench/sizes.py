"""Task vocabularies of other sizes: the same order of preference, cut elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vt_core.errors import OptionError
from vt_core.files.model_dir import ModelDirectory
from vt_core.vocab.active import Ids
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable


def ranked(table: TokenTable, task: TaskVocabulary | None) -> Ids:
    """All ordinary ids, those that are needed most first: of a task by its counts; then single characters and
    bytes; then by rank.
    """
    of_task = np.empty(0, np.int64) if task is None else task.ids[np.lexsort((task.ids, -task.counts))]
    order = np.concatenate([of_task, rank_prior(table, 0), table.ordinary_ids()])
    first = np.sort(np.unique(order, return_index=True)[1])
    ids: Ids = order[first]
    return ids


def write_sized(directory: ModelDirectory, tasks: Sequence[TaskVocabulary], rows: int, out: Path) -> Path:
    """A task vocabulary of that many rows (special ids come on top), as a file.

    Raises OptionError where the model has not so many.
    """
    table = TokenTable.load(directory.tokenizer_path)
    task = TaskVocabulary.union(tasks) if tasks else None
    ids = ranked(table, task)
    ids = ids[ids < directory.manifest.vocab_rows]
    if rows > len(ids):
        raise OptionError(f"{rows} static rows are asked for, but the tokenizer has {len(ids)} ordinary ids")
    chosen = np.sort(ids[:rows])
    counts = np.zeros(rows, np.int64)
    if task is not None:
        _, mine, theirs = np.intersect1d(chosen, task.ids, return_indices=True)
        counts[mine] = task.counts[theirs]
    path = out / f"{rows}.vt.json"
    name = f"{rows} rows"
    if task is None:
        manifest = directory.manifest
        sized = TaskVocabulary(name, manifest.tokenizer_digest, manifest.vocab_rows, chosen, counts)
    else:
        sized = replace(task, name=name, ids=chosen, counts=counts, stages={}, held_out=None)
    sized.save(path)
    return path
