from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ngram_tables import sections
from vt_core.errors import VocabularyError
from vt_core.vocab.ngrams import (
    BEGIN,
    END,
    MAGIC,
    SEED,
    NgramTable,
    context_hashes,
    extend_hash,
    extend_hashes,
    open_tables,
    table_path,
)

DIGEST, OTHER = "a" * 64, "b" * 64

tokens = st.integers(0, END)


def table(entries: dict[tuple[int, ...], tuple[int, int, int]], name: str = "math") -> NgramTable:
    return NgramTable(
        DIGEST,
        sections(entries),
        name,
        "gemma",
        20,
        5,
        ({"context": "a", "next": "b", "count": 1, "share": 0.5},),
    )


SMALL = table({(1,): (2, 8, 10), (BEGIN,): (7, 9, 9), (1, 2): (END, 70_000, 70_000), (3, 2): (1, 5, 20)})


@given(st.lists(tokens, min_size=1, max_size=6))
def test_hashes_of_contexts_grow_from_the_end(context):
    hashes = context_hashes(context, len(context))
    assert hashes[0] == extend_hash(SEED, context[-1])
    assert hashes[-1] == extend_hash(context_hashes(context[1:], 9)[-1] if context[1:] else SEED, context[0])
    assert context_hashes([5, *context], len(context)) == hashes
    arrays = np.full(len(context), SEED, np.uint64)
    assert extend_hashes(arrays, np.array(context, np.uint32)).tolist() == [
        extend_hash(SEED, t) for t in context
    ]


def test_hash_is_the_one_that_files_use():
    assert context_hashes([1, 2, 3], 3) == [0x1D3C0EBDB7F877AD, 0xF9E5C0552315550E, 0x95DD4C2EA8947215]


def test_longest_context_is_found():
    def find(*context: int) -> tuple[int, int, int] | None:
        found = SMALL.find(context_hashes(context, 4))
        return found and found[:3]

    assert find(1) == (1, 2, 8)
    assert find(9, 1, 2) == (2, END, 0xFFFF)
    assert find(3, 2) == (2, 1, 5)
    assert find(2) is None
    assert SMALL.find([]) is None
    found = SMALL.find(context_hashes([3, 2], 2))
    assert found is not None and found.share == pytest.approx(0.25, abs=1e-4)


@given(
    st.dictionaries(
        st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
        st.tuples(tokens, st.integers(1, 99), st.just(99)),
    )
)
def test_file_holds_the_same_as_a_dictionary(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("t") / "x.ngrams"
    table(entries).save(path)
    opened = NgramTable.open(path)
    for context, (token, count, _) in entries.items():
        hashes = context_hashes(context, 4)
        known = [n for n in range(len(context), 0, -1) if context[-n:] in entries]
        found = opened.find(hashes)
        assert found is not None and found[:3] == (known[0], token, count)
    for context in ((6,), (6, 6), (0, 6)):
        assert opened.find(context_hashes(context, 4)) is None


def test_file_holds_all_fields(tmp_path):
    SMALL.save(tmp_path / "x.ngrams")
    opened = NgramTable.open(tmp_path / "x.ngrams")
    assert (opened.tokenizer_digest, opened.name, opened.model) == (DIGEST, "math", "gemma")
    assert (opened.examples, opened.min_count, opened.entries) == (20, 5, (2, 2))
    assert opened.samples == SMALL.samples
    assert opened.content() == SMALL.content() == (tmp_path / "x.ngrams").read_bytes()


def test_another_tokenizer_is_refused(tmp_path):
    SMALL.check(DIGEST)
    with pytest.raises(VocabularyError) as error:
        SMALL.check(OTHER, "qwen")
    assert str(error.value) == (
        "N-gram table 'math' was made for tokenizer aaaaaaaaaaaa of gemma, but the model has tokenizer "
        "bbbbbbbbbbbb of qwen; profile the task for this model."
    )


def test_tables_are_beside_their_tasks(tmp_path):
    tasks = [tmp_path / "math.vt.json", tmp_path / "sql.json", tmp_path / "none.vt.json"]
    assert [table_path(task).name for task in tasks] == ["math.ngrams", "sql.ngrams", "none.ngrams"]
    for task in tasks[:2]:
        SMALL.save(table_path(task))
    assert len(open_tables(tasks, DIGEST)) == 2
    with pytest.raises(VocabularyError, match="was made for tokenizer aaaaaaaaaaaa"):
        open_tables(tasks, OTHER)


def changed(path: Path, **values: object) -> bytes:
    """A table's file with other fields in its header."""
    content = path.read_bytes()
    length = int.from_bytes(content[8:16], "little")
    header = {**json.loads(content[16 : 16 + length]), **values}
    text = json.dumps(header).encode()
    text += b" " * (-(16 + len(text)) % 64)
    return MAGIC + struct.pack("<Q", len(text)) + text + content[16 + length :]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "vt-ngrams/9"}, "format 'vt-ngrams/9' is unknown; this version reads 'vt-ngrams/1'"),
        ({"entries": [2, 3]}, "is damaged: 384 bytes for 5 entries after a header of"),
        ({"entries": [2, 10**18]}, "field 'entries' holds 1000000000000000000, not a number from 0 to"),
        ({"entries": [2, -1]}, "field 'entries' holds -1, not a number"),
        ({"entries": [0] * 9 + [4]}, "has 10 context lengths, more than 8"),
        ({"min_count": 0}, "field 'min_count' is 0, not from 1"),
        ({"samples": [1]}, "field 'samples' is not a list of objects"),
        ({"samples": [{"context": "a"}]}, "field 'samples.next' is missing"),
        ({"samples": [{"context": "a", "next": "", "count": 1, "share": 2.0}]}, "is 2.0, not from 0 to 1"),
        ({"tokenizer_digest": None}, "field 'tokenizer_digest' is None, not text"),
    ],
)
def test_wrong_fields_are_refused(tmp_path, values, message):
    path = tmp_path / "x.ngrams"
    SMALL.save(path)
    path.write_bytes(changed(path, **values))
    with pytest.raises(VocabularyError) as error:
        NgramTable.open(path)
    assert "x.ngrams" in str(error.value) and message in str(error.value)


def test_truncated_files_are_refused(tmp_path):
    content, path = SMALL.content(), tmp_path / "x.ngrams"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(VocabularyError, match=r"x\.ngrams"):
            NgramTable.open(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(VocabularyError, match="is damaged"):
        NgramTable.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an n-gram table; profile the task to make one"),
        (b"{}", "not an n-gram table"),
        (MAGIC + b"\xff" * 8, "its header is said to have 18446744073709551615 bytes"),
        (MAGIC + struct.pack("<Q", 48) + b"[" * 48, "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.ngrams"
    path.write_bytes(content)
    with pytest.raises(VocabularyError) as error:
        NgramTable.open(path)
    assert message in str(error.value)


def test_missing_file_and_directory_are_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path, "a\0b"):
        with pytest.raises(VocabularyError, match="cannot be read"):
            NgramTable.open(path)


@given(st.data())
def test_damaged_entries_give_some_answer_or_none(tmp_path_factory, data):
    content = bytearray(SMALL.content())
    start = len(content) - 4 * 16
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("t") / "x.ngrams"
    path.write_bytes(content)
    found = NgramTable.open(path).find(context_hashes([1, 2], 4))
    assert found is None or (0 <= found.token <= END and 0 <= found.share <= 1)
