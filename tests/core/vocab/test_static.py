from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.tiny import write_tokenizer
from vt_core.errors import VocabularyError
from vt_core.vocab.prior import rank_prior
from vt_core.vocab.static import static_ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer

DIGEST = "a" * 64


@pytest.fixture
def tokens(tmp_path):
    """A tokenizer whose last token is named only in added_tokens.json. The value is its number of tokens."""
    size = write_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|done|>": size}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, size]}))
    return size + 1


def static(path, rows, *tasks):
    manifest = SimpleNamespace(vocab_rows=rows, tokenizer_digest=DIGEST)
    return static_ids(SimpleNamespace(manifest=manifest), Tokenizer(path), tasks)


def task(ids, digest=DIGEST):
    return TaskVocabulary("t", digest, 500, np.array(ids, np.int64), np.ones(len(ids), np.int64))


def test_tasks_are_united_with_special_and_eos_ids(tmp_path, tokens):
    found = static(tmp_path, 5000, task([7, 9]), task([9, 11]))
    assert found.tolist() == [0, 1, 2, 7, 9, 11, 300, tokens - 1]


def test_ids_without_a_row_are_left_out(tmp_path, tokens):
    assert static(tmp_path, tokens - 1, task([7])).tolist() == [0, 1, 2, 7, 300]


def test_rank_prior_without_a_task(tmp_path, tokens):
    prior = rank_prior(TokenTable.load(tmp_path / "tokenizer.json"))
    assert static(tmp_path, 5000).tolist() == sorted({*prior.tolist(), 0, 1, 2, 300, tokens - 1})


def test_task_of_another_tokenizer_is_refused(tmp_path, tokens):
    with pytest.raises(VocabularyError, match="was made for tokenizer bbbbbbbbbbbb"):
        static(tmp_path, 5000, task([7], digest="b" * 64))
