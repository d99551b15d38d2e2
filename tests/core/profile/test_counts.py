from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import VocabularyError
from vt_core.profile.counts import Counts, merge_all

DIGEST, OTHER = "a" * 64, "b" * 64


def plain(counts: Counts) -> dict[str, Any]:
    return counts.fields()


@st.composite
def counted(draw: st.DrawFn) -> Counts:
    size = draw(st.integers(3, 6))
    examples = draw(st.integers(0, 9))
    written = draw(st.lists(st.integers(0, examples), min_size=size, max_size=size))
    needed = [draw(st.integers(0, count)) for count in written]
    tokens = sum(written) + draw(st.integers(0, 5))
    names = draw(st.lists(st.sampled_from(["a.jsonl", "b.jsonl"]), max_size=2, unique=True))
    return Counts(
        DIGEST,
        np.array(needed),
        np.array(written),
        examples,
        tokens,
        draw(st.integers(0, tokens)),
        draw(st.integers(0, 3)),
        tuple({"file": name, "rows": examples} for name in sorted(names)),
    )


@given(counted(), counted())
def test_merging_is_commutative(a: Counts, b: Counts) -> None:
    assert plain(a.merge(b)) == plain(b.merge(a))


@given(counted(), counted(), counted())
def test_merging_is_associative(a: Counts, b: Counts, c: Counts) -> None:
    assert plain(a.merge(b).merge(c)) == plain(a.merge(b.merge(c)))


@given(counted())
def test_merging_empty_counts_changes_nothing(a: Counts) -> None:
    assert plain(a.merge(Counts.empty(DIGEST, a.size))) == plain(a)


@given(counted(), counted())
def test_merged_counts_are_sums(a: Counts, b: Counts) -> None:
    total = a.merge(b)
    for id in range(total.size):
        for column in ("needed", "written"):
            parts = [getattr(part, column) for part in (a, b)]
            assert getattr(total, column)[id] == sum(int(part[id]) for part in parts if id < len(part))
    assert (total.examples, total.tokens, total.copied, total.bad_rows) == (
        a.examples + b.examples,
        a.tokens + b.tokens,
        a.copied + b.copied,
        a.bad_rows + b.bad_rows,
    )


@given(counted(), st.integers(1, 4))
def test_times_equals_repeated_merging(a: Counts, weight: int) -> None:
    repeated, weighed = plain(merge_all([a] * weight)), plain(a.times(weight))
    for key in ("examples", "tokens", "copied", "ids", "needed", "written"):
        assert weighed[key] == repeated[key]
    assert a.times(weight).source == a.source


@given(counted())
def test_saved_counts_load_unchanged(tmp_path_factory: pytest.TempPathFactory, a: Counts) -> None:
    path = tmp_path_factory.mktemp("counts") / "a.counts"
    a.save(path)
    assert plain(Counts.load(path)) == plain(a)


def test_counts_of_different_tokenizers_do_not_merge() -> None:
    a, b = Counts.empty(DIGEST, 3), Counts.empty(OTHER, 3)
    with pytest.raises(VocabularyError, match=r"tokenizer aaaaaaaaaaaa .* tokenizer bbbbbbbbbbbb"):
        a.merge(b)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "vt-counts/0", "format 'vt-counts/0' is unknown"),
        ("format", None, "format None is unknown"),
        ("size", 2**30, "field 'size'"),
        ("shards", 3, "field 'shards' is not a list of"),
        ("shards", [["ab", 2, 3]], "field 'shards' is not a list of"),
        ("ids", [2, 1], "field 'ids' is not sorted"),
        ("ids", [1, 5], "field 'ids' holds 5"),
        ("needed", [1], "field 'needed' has 1 entries for 2 ids"),
        ("written", [1, 4], "field 'written' holds 4"),
        ("tokens", -1, "field 'tokens' is -1"),
        ("source", "x", "field 'source' is 'x', not a list of files"),
        ("tokenizer_digest", 3, "field 'tokenizer_digest' is 3, not text"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    counts = Counts(DIGEST, np.array([0, 1, 0, 2, 0]), np.array([0, 1, 0, 3, 0]), 3, 5, 1)
    path = tmp_path / "a.counts"
    path.write_text(json.dumps({**counts.fields(), field: value}))
    with pytest.raises(VocabularyError, match=message):
        Counts.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "3"])
def test_file_without_counts_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.counts"
    path.write_text(content)
    with pytest.raises(VocabularyError, match=r"a\.counts"):
        Counts.load(path)
