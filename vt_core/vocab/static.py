"""The rows that a model's head keeps for all requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vt_core.files.model_dir import ModelDirectory
from vt_core.types import Ids
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer


def static_ids(directory: ModelDirectory, tokenizer: Tokenizer, tasks: Sequence[TaskVocabulary]) -> Ids:
    """Full ids of the static set, sorted int64 ``[n]``.

    It is the union of the task vocabularies, or the rank prior without one, and always special, EOS and
    merged ids.

    Raises:
        VocabularyError: a task vocabulary belongs to another tokenizer.
    """
    rows = directory.manifest.vocab_rows
    for task in tasks:
        task.check(directory.manifest.tokenizer_digest, rows)
    # Only the prior needs all tokens; reading them takes time and memory.
    chosen = [np.asarray(task.ids) for task in tasks] or [rank_prior(TokenTable.load(tokenizer.path))]
    always = tokenizer.added_ids() | tokenizer.eos_ids(rows) | frozenset(tokenizer.merges)
    ids: Ids = np.unique(np.concatenate([*chosen, np.array(list(always))]).astype(np.int64))
    return ids[ids < rows]
