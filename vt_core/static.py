"""Which rows a model's head keeps for all requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from vt_core.model_dir import ModelDirectory
from vt_core.prior import rank_prior
from vt_core.task import TaskVocabulary
from vt_core.token_bytes import TokenTable
from vt_core.vocabulary import Ids


def static_ids(directory: ModelDirectory, eos_ids: Collection[int], tasks: Sequence[TaskVocabulary]) -> Ids:
    """Sorted full ids: the union of the task vocabularies, or the rank prior without one; special and EOS ids
    always.

    Raises:
        VocabularyError: a task vocabulary belongs to another tokenizer.
    """
    rows = directory.manifest.vocab_rows
    for task in tasks:
        task.check(directory.manifest.tokenizer_digest, rows)
    table = TokenTable.load(directory.path / "tokenizer.json")
    chosen = [np.asarray(task.ids) for task in tasks] or [rank_prior(table)]
    always = np.fromiter({*table.special_ids(rows), *eos_ids}, dtype=np.int64)
    ids: Ids = np.unique(np.concatenate([*chosen, always]).astype(np.int64))
    return ids[ids < rows]
