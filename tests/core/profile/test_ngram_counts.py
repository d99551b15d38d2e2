from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import byte_level, write
from vt_core.errors import VocabularyError
from vt_core.profile import ngram_counts, readers
from vt_core.profile.batch_counts import ExampleReader
from vt_core.profile.checkpoint import Checkpoint, run_signature
from vt_core.profile.counting import count_files
from vt_core.profile.counts import Counts, merge_all
from vt_core.profile.ngram_counts import NgramAccumulator, NgramCounts
from vt_core.profile.own_outputs import count_own_outputs
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.ngrams import BEGIN, END, NgramTable, Section, context_hashes
from vt_core.vocab.tokenizer import load_tokenizer

DIGEST = "a" * 64
EMPTY = Counts.empty(DIGEST, 300, contexts=3)

#: Outputs of few tokens, so that n-grams repeat. The last id has no row in some tests.
outputs = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), max_size=12)

Expected = dict[tuple[int, int], Counter[int]]


def counted(outputs: list[list[int]], longest: int = 3) -> NgramCounts:
    text = [token for output in outputs for token in (BEGIN, *output, END)]
    return NgramCounts.of(np.array(text, np.uint32), longest)


def expected(outputs: list[list[int]], longest: int = 3) -> Expected:
    """Tokens that follow each context, by its length and hash, from the definition."""
    found: Expected = {}
    for output in outputs:
        text = [BEGIN, *output, END]
        for at in range(1, len(text)):
            for order in range(1, min(longest, at) + 1):
                hash = context_hashes(text[:at], order)[-1]
                found.setdefault((order, hash), Counter())[text[at]] += 1
    return found


def plain(counts: NgramCounts) -> list[list[tuple[int, int, int]]]:
    columns = ((part.hashes, part.tokens, part.counts) for part in counts.orders)
    return [list(zip(*(column.tolist() for column in part), strict=True)) for part in columns]


@given(outputs, st.integers(1, 5))
def test_counts_match_their_definition(outputs, longest):
    found: Expected = {}
    for order, part in enumerate(plain(counted(outputs, longest)), 1):
        for hash, token, count in part:
            found.setdefault((order, hash), Counter())[token] = count
        assert part == sorted(part)
    assert found == expected(outputs, longest)


@given(outputs, outputs, outputs)
def test_merging_is_associative_and_commutative(a, b, c):
    whole = plain(counted([*a, *b, *c]))
    x, y, z = map(counted, (a, b, c))
    assert plain(x.merge(y).merge(z)) == plain(z.merge(x.merge(y))) == whole
    assert plain(NgramCounts.empty(3).merge(x)) == plain(x)
    assert plain(NgramCounts.empty(2).merge(x)) == plain(x)[:2]


@given(st.lists(outputs, min_size=1, max_size=6), st.integers(0, 60))
def test_bound_gives_up_the_longest_contexts_in_any_order_of_merging(parts, bound):
    whole = counted([output for part in parts for output in part])
    kept = max(n for n in range(4) if sum(map(len, whole.orders[:n])) <= bound)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_counts, "MAX_NGRAMS", bound)
        for order in (parts, parts[::-1]):
            total = NgramAccumulator(NgramCounts.empty(3))
            for part in order:
                total.add(counted(part))
            assert plain(total.total()) == plain(whole)[:kept]


@given(outputs, st.integers(1, 4))
def test_weight_repeats_the_outputs(outputs, weight):
    assert plain(counted(outputs).times(weight)) == plain(counted(outputs * weight))


@given(outputs)
def test_records_hold_the_counts(outputs):
    counts = counted(outputs)
    records, numbers = counts.records()
    assert plain(NgramCounts.from_records(records, numbers, 3)) == plain(counts)
    assert plain(NgramCounts.from_records(records[::-1], numbers[::-1], 3)) == plain(counts)


def found(section: Section) -> dict[int, tuple[int, int, float]]:
    columns = section.hashes, section.tokens, section.counts, section.shares
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {hash: (token, count, share) for hash, token, count, share in rows}


@given(outputs, st.integers(1, 3))
def test_table_holds_the_most_frequent_tokens(outputs, min_count):
    sections = counted(outputs).sections(rows=4, min_count=min_count)
    wanted: dict[int, dict[int, tuple[int, int, float]]] = {}
    for (order, hash), tokens in expected(outputs).items():
        usable = {token: count for token, count in tokens.items() if token < 4 or token == END}
        if usable and max(usable.values()) >= min_count:
            token = min(usable, key=lambda token: (-usable[token], token))
            share = round(usable[token] / tokens.total() * 0xFFFF)
            wanted.setdefault(order, {})[hash] = (token, usable[token], share)
    assert {order: found(part) for order, part in enumerate(sections, 1)} == wanted
    table = NgramTable(DIGEST, sections)
    for order, entries in wanted.items():
        for hash, (token, count, _) in entries.items():
            match = table.find([0] * (order - 1) + [hash])
            assert match is not None and (match.order, match.token, match.times) == (order, token, count)


def test_bound_of_a_table_leaves_out_the_rarest_of_the_longest_contexts():
    counts = counted([[1, 2]] * 9 + [[3, 2]] * 7 + [[3, 4]] * 5)
    whole = counts.sections(100)
    assert [len(section) for section in whole] == [5, 5, 3]
    cut = counts.sections(100, max_entries=11)
    assert [len(section) for section in cut] == [5, 5, 1]
    assert cut[2].counts.tolist() == [9]
    assert [len(section) for section in counts.sections(100, max_entries=10)] == [5, 5]
    assert np.all(np.diff(counts.sections(100, max_entries=8)[1].hashes.astype(object)) > 0)


def test_large_counts_and_shares_are_limited():
    text = [[1]] * 3 + [[2]]
    (section,) = counted(text, 1).times(10**6).sections(100)[:1]
    assert section.counts.max() == 0xFFFF
    assert section.shares.max() == 0xFFFF


@pytest.fixture(scope="module")
def tokenizer_json() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        yield write(Path(directory), byte_level([" cat", " dog", "the"]))


def reader(tokenizer_json: Path, contexts: int = 3) -> ExampleReader:
    return ExampleReader(load_tokenizer(tokenizer_json), RowFormat(), contexts=contexts)


def corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"input": "q", "output": text}) + "\n" for text in texts))
    return path


texts = st.lists(st.text("ab cat dog the", max_size=12), max_size=12)


@settings(deadline=None, max_examples=30)
@given(texts, st.data())
def test_files_count_as_their_outputs_do(tokenizer_json, texts, data):
    tokenizer = load_tokenizer(tokenizer_json)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts if text]
    cut = data.draw(st.integers(0, len(texts)))
    with tempfile.TemporaryDirectory() as directory:
        whole = corpus(Path(directory) / "whole.jsonl", texts)
        parts = [
            corpus(Path(directory) / name, part) for name, part in (("a", texts[:cut]), ("b", texts[cut:]))
        ]
        parts = [part.rename(part.with_suffix(".jsonl")) for part in parts]
        counts = count_files([whole], reader(tokenizer_json), EMPTY)
        apart = [count_files([part], reader(tokenizer_json), EMPTY) for part in reversed(parts)]
    assert plain(counts.ngrams) == plain(counted(ids))
    assert plain(merge_all(apart).ngrams) == plain(counts.ngrams)


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> list[Path]:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 300)
    lines = [[f"{name} dog the {i % 5}" for i in range(40)] for name in "abc"]
    return [corpus(tmp_path / f"{name}.jsonl", part) for name, part in zip("abc", lines, strict=True)]


def test_counts_do_not_depend_on_processes(tokenizer_json, files):
    alone = count_files(files, reader(tokenizer_json), EMPTY)
    shared = count_files(files, reader(tokenizer_json), EMPTY, processes=2)
    assert plain(shared.ngrams) == plain(alone.ngrams)
    assert len(alone.ngrams) == 54


def test_interrupted_count_resumes(tmp_path, tokenizer_json, files):
    class Stop(Exception):
        pass

    def stop(rows: int) -> None:
        raise Stop

    checkpoint = Checkpoint(tmp_path / "c", run_signature(files))
    for _ in range(3):
        with pytest.raises(Stop):
            count_files(files, reader(tokenizer_json), EMPTY, checkpoint=checkpoint, on_rows=stop)
    resumed = count_files(files, reader(tokenizer_json), EMPTY, checkpoint=checkpoint)
    assert plain(resumed.ngrams) == plain(count_files(files, reader(tokenizer_json), EMPTY).ngrams)


def test_nothing_is_counted_unless_asked(tokenizer_json, files):
    counts = count_files(files, reader(tokenizer_json, 0), Counts.empty(DIGEST, 300))
    assert counts.examples == 120
    assert counts.ngrams.orders == ()


@pytest.mark.parametrize(("written", "text"), [([7, 8, 299], [BEGIN, 7, 8, END]), ([7, 8], [BEGIN, 7, 8])])
def test_own_outputs_end_where_the_model_ends_them(tmp_path, tokenizer_json, written, text):
    file = corpus(tmp_path / "a.jsonl", ["ignored"])
    counts = count_own_outputs(
        [file], tokenizer_json, EMPTY, RowFormat(), lambda *_: written, always=np.array([299])
    )
    assert plain(counts.ngrams) == plain(NgramCounts.of(np.array(text, np.uint32), 3))


@given(outputs)
def test_counts_file_holds_them(outputs):
    counts = Counts(DIGEST, np.zeros(5, np.int64), np.zeros(5, np.int64), ngrams=counted(outputs))
    with tempfile.TemporaryDirectory() as directory:
        counts.save(Path(directory) / "c")
        assert plain(Counts.load(Path(directory) / "c").ngrams) == plain(counts.ngrams)


def test_counts_file_of_an_older_version_has_none(tmp_path):
    EMPTY.save(tmp_path / "c")
    values = json.loads((tmp_path / "c").read_text())
    del values["ngrams"]
    (tmp_path / "c").write_text(json.dumps(values))
    assert Counts.load(tmp_path / "c").ngrams.orders == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[0].update(ngrams=4), "field 'ngrams.data' does not hold 4 n-grams"),
        (lambda parts: parts[0].update(ngrams=10**9), "field 'ngrams.ngrams' is 1000000000, not from 0 to"),
        (lambda parts: parts[0].update(data="%"), "field 'ngrams.data' cannot be unpacked"),
        (lambda parts: parts[0].update(data="AAAA"), "field 'ngrams.data' cannot be unpacked"),
        (lambda parts: parts.append(3), "field 'ngrams' is not a list of objects"),
        (lambda parts: parts.extend([parts[0]] * 9), "field 'ngrams' has 12 context lengths, more than 8"),
    ],
)
def test_damaged_counts_are_refused(tmp_path, change, message):
    path = tmp_path / "c"
    Counts(DIGEST, np.zeros(5, np.int64), np.zeros(5, np.int64), ngrams=counted([[1, 2]])).save(path)
    values = json.loads(path.read_text())
    change(values["ngrams"])
    path.write_text(json.dumps(values))
    with pytest.raises(VocabularyError) as error:
        Counts.load(path)
    assert message in str(error.value)


@pytest.mark.parametrize("counts", [[0, 1], [-1, 1], [2**62, 1]])
def test_counts_out_of_range_are_refused(tmp_path, counts):
    part = counted([[1]], 1).orders[0]
    wrong = ngram_counts.Occurrences(part.hashes, part.tokens, np.array(counts))
    Counts(DIGEST, np.zeros(5, np.int64), np.zeros(5, np.int64), ngrams=NgramCounts((wrong,))).save(
        tmp_path / "c"
    )
    with pytest.raises(VocabularyError, match="holds a count out of range"):
        Counts.load(tmp_path / "c")


def test_unsorted_counts_are_refused(tmp_path):
    part = counted([[1]], 1).orders[0]
    wrong = ngram_counts.Occurrences(part.hashes[::-1], part.tokens[::-1], part.counts)
    Counts(DIGEST, np.zeros(5, np.int64), np.zeros(5, np.int64), ngrams=NgramCounts((wrong,))).save(
        tmp_path / "c"
    )
    with pytest.raises(VocabularyError, match="is not sorted, or holds an n-gram twice"):
        Counts.load(tmp_path / "c")
