from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.core.profile.small import added, byte_level
from vt_core.errors import VocabularyError
from vt_core.profile.describe import describe, description_lines
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

TABLE = TokenTable.from_json(byte_level([" the", "да", "中"]))


def task(**changes: Any) -> TaskVocabulary:
    ids = np.array([0x0A, 0x61, 0x62, 0xE4, 258, TABLE.size - 1])
    values: dict[str, Any] = {
        "name": "t",
        "tokenizer_digest": TABLE.digest(),
        "vocab_size": 600,
        "ids": ids,
        "counts": np.array([3, 9, 0, 0, 9, 1]),
        "examples": 10,
        "prior": 2,
        "languages": ("en",),
        "stages": {"vocabulary": 600, "corpus": 4},
        "source": ({"file": "a.jsonl", "rows": 10},),
    }
    return TaskVocabulary(**{**values, **changes})


def test_sizes_are_told_without_a_tokenizer() -> None:
    report = describe(task())
    assert (report["rows"], report["profiled_rows"], report["row_share"]) == (6, 4, 0.01)
    assert "most_frequent" not in report
    json.dumps(report)


def test_tokens_are_told_as_text_best_first() -> None:
    report = describe(task(), TABLE)
    assert report["most_frequent"] == [
        {"id": 258, "text": " the", "count": 9},
        {"id": 0x61, "text": "a", "count": 9},
        {"id": 0x0A, "text": "\n", "count": 3},
        {"id": TABLE.size - 1, "text": "中", "count": 1},
    ]
    assert report["scripts"] == {"latin": 3, "none": 2, "cjk": 1}


def test_last_kept_are_those_that_are_not_shown_already() -> None:
    ids = np.arange(100)
    report = describe(task(ids=ids, counts=np.where(ids < 50, 10, 1)), TABLE)
    assert [token["id"] for token in report["most_frequent"]] == list(range(49, 29, -1))
    assert [token["id"] for token in report["last_kept"]] == list(range(69, 49, -1))


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(VocabularyError, match="was made for tokenizer bbbb"):
        describe(task(tokenizer_digest="b" * 64), TABLE)


class Manifest:
    """What of a model directory's manifest decides about memory."""

    tokenizer_digest = TABLE.digest()
    vocab_rows = 500
    table_bytes = 500 * 64

    @staticmethod
    def table_bytes_of(rows: int) -> int:
        return rows * 64


def test_memory_in_a_model_directory_counts_special_rows() -> None:
    table = TokenTable.from_json(byte_level([" the", "да", "中"], [added(300, "<|end|>"), added(301, "<b>")]))
    report = describe(task(), table, Manifest())
    assert (report["active_rows"], report["vocab_bytes_full"], report["vocab_bytes_resident"]) == (
        8,
        32000,
        512,
    )
    assert dict(description_lines(report))["memory"] == "0.0 MB of 0.0 MB, for 8 rows with special ones"


def test_model_directory_with_fewer_rows_is_refused() -> None:
    small = type("Small", (Manifest,), {"vocab_rows": 100})
    with pytest.raises(VocabularyError, match="has only 100 rows"):
        describe(task(), TABLE, small())


def test_lines_for_people() -> None:
    covered = task(held_out={"token_coverage": 0.975})
    text = dict(description_lines(describe(covered, TABLE)))
    assert text["rows"] == "6 of 600 (1.0%)"
    assert text[""] == "4 from 10 examples, 2 from the rank prior"
    assert text["held out"].startswith("2.50% of the output tokens")
    assert text["most frequent"] == "␣the a \\n 中"
    assert text["stages"] == "vocabulary 600, corpus 4"
    assert dict(description_lines(describe(task(languages=()))))["languages"] == "not filtered"
