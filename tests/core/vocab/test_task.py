from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import added, byte_level, write
from vt_core.errors import OutputError, VocabularyError
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

DIGEST, OTHER = "a" * 64, "b" * 64


def task(ids: list[int], counts: list[int] | None = None, **changes: Any) -> TaskVocabulary:
    values: dict[str, Any] = {
        "name": "math",
        "tokenizer_digest": DIGEST,
        "vocab_size": 100,
        "ids": np.array(ids, np.int64),
        "counts": np.array(counts if counts is not None else [1] * len(ids), np.int64),
        "examples": 10,
    }
    return TaskVocabulary(**{**values, **changes})


def plain(vocabulary: TaskVocabulary) -> dict[str, Any]:
    values = {field.name: getattr(vocabulary, field.name) for field in fields(vocabulary)}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    saved = task(
        [3, 5, 99],
        [10, 0, 2],
        prior=1,
        languages=("en", "math"),
        tolerance=0.01,
        stages={"vocabulary": 100, "tolerance": 3},
        source=({"file": "a.jsonl", "rows": 10},),
        held_out={"token_coverage": 0.5},
        model="tiny",
    )
    saved.save(tmp_path / "math.vt.json")
    assert plain(TaskVocabulary.load(tmp_path / "math.vt.json")) == plain(saved)


def test_tolerance_may_be_absent(tmp_path: Path) -> None:
    task([1], tolerance=None).save(tmp_path / "t.vt.json")
    assert TaskVocabulary.load(tmp_path / "t.vt.json").tolerance is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "vt-task/9", "format 'vt-task/9' is unknown"),
        ("name", 3, "field 'name' is 3, not text"),
        ("tokenizer_digest", None, "field 'tokenizer_digest' is None, not text"),
        ("vocab_size", -1, "field 'vocab_size' is -1"),
        ("vocab_size", 2**40, "field 'vocab_size' is 1099511627776"),
        ("ids", [5, 3], "field 'ids' is not sorted"),
        ("ids", [3, 3], "field 'ids' is not sorted, or holds an id twice"),
        ("ids", [3, 100], "field 'ids' holds 100"),
        ("ids", [3, True], "field 'ids' holds True"),
        ("ids", [-1, 3], "field 'ids' holds -1"),
        ("ids", {"a": 3}, "field 'ids' is {'a': 3}, not a list"),
        ("counts", [1], "field 'counts' has 1 entries for 2 ids"),
        ("counts", [1, 11], "field 'counts' holds 11"),
        ("examples", 1.5, "field 'examples' is 1.5, not a whole number"),
        ("prior", True, "field 'prior' is True, not a whole number"),
        ("languages", ["en", 3], "field 'languages' is not a list of names"),
        ("tolerance", 1, "field 'tolerance' is 1, not at least 0 and below 1"),
        ("stages", {"vocabulary": -3}, "field 'stages' is not a table of sizes"),
        ("source", [{"file": "x"}], "field 'source' holds"),
        ("held_out", [1], "field 'held_out' is not a table of figures"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = tmp_path / "math.vt.json"
    task([3, 5]).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(VocabularyError, match=message) as caught:
        TaskVocabulary.load(path)
    assert str(path) in str(caught.value)


def test_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "math.vt.json"
    task([3, 5], tolerance=0.1, held_out={"tokens": 3}).save(path)
    whole = json.loads(path.read_text())
    for field in whole.keys() - {"format", "model", "tolerance", "held_out"}:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != field}))
        with pytest.raises(VocabularyError, match=f"field '{field}' is missing"):
            TaskVocabulary.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("3", "neither an object nor a list"),
        ("[NaN]", "NaN"),
    ],
)
def test_other_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(VocabularyError, match=message):
        TaskVocabulary.load(path)


def test_large_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vt_core.vocab.task.MAX_BYTES", 10)
    (tmp_path / "x.json").write_text("[" + " " * 20 + "]")
    with pytest.raises(VocabularyError, match=r"x\.json: not a task vocabulary; 22 bytes are more than"):
        TaskVocabulary.load(tmp_path / "x.json")


@pytest.mark.parametrize("path", [3, None, b"x.json", ["x.json"]])
def test_wrong_type_of_path_is_refused(path: Any) -> None:
    with pytest.raises(VocabularyError, match="a task is a file or a TaskVocabulary"):
        TaskVocabulary.load(path)


def test_endless_device_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("vt_core.vocab.task.MAX_BYTES", 1000)
    with pytest.raises(VocabularyError, match="more than the limit of 1000 bytes"):
        TaskVocabulary.load("/dev/zero")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"absent\.vt\.json: the task vocabulary cannot be read"):
        TaskVocabulary.load(tmp_path / "absent.vt.json")


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    return write(tmp_path / "model", byte_level([" the", " é"], [added(300, "<|end|>")]))


@pytest.mark.parametrize(
    "published", [{"\u0120the": 258, "a": 97}, {" the": 258, "a": 97}, [258, 97], {"a": 97, "\u0120the": 258}]
)
def test_published_formats_are_read(tmp_path: Path, tokenizer_json: Path, published: Any) -> None:
    path = tmp_path / "Model_math_tol_0.01.json"
    path.write_text(json.dumps(published))
    read = TaskVocabulary.load(path, tokenizer_json)
    assert read.ids.tolist() == [97, 258]
    assert read.name == "Model_math_tol_0.01"
    assert (read.tokenizer_digest, read.vocab_size) == (TokenTable.load(tokenizer_json).digest(), 301)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"\u0120the": 97}, "id 97 is 'Ġthe', but 'a' in the model's tokenizer"),
        ({"a": 301}, "301 is not an id"),
        ({"a": "b"}, "'b' is not a token id"),
        ([270], "270 is not an id"),
        ([-1], "-1 is not a token id"),
        ([True], "True is not a token id"),
    ],
)
def test_published_vocabulary_of_another_tokenizer_is_refused(
    tmp_path: Path, tokenizer_json: Path, published: Any, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(published))
    with pytest.raises(VocabularyError, match=message):
        TaskVocabulary.load(path, tokenizer_json)


def test_published_vocabulary_needs_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1, 2]")
    with pytest.raises(VocabularyError, match="give the model that it belongs to"):
        TaskVocabulary.load(path)


def test_published_vocabulary_may_have_a_token_format(tmp_path: Path) -> None:
    tokenizer_json = write(tmp_path / "model", byte_level(["format"]))
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"format": 260}))
    assert TaskVocabulary.load(path, tokenizer_json).ids.tolist() == [260]


def test_published_format_is_written_by_frequency(tmp_path: Path, tokenizer_json: Path) -> None:
    table = TokenTable.load(tokenizer_json)
    path = tmp_path / "out.json"
    saved = task([97, 98, 258], [2, 5, 5], tokenizer_digest=table.digest(), vocab_size=table.size)
    saved.save_published(path, table)
    assert list(json.loads(path.read_text()).items()) == [("b", 98), ("\u0120the", 258), ("a", 97)]
    assert TaskVocabulary.load(path, tokenizer_json).ids.tolist() == [97, 98, 258]


def test_check_accepts_a_larger_table_of_the_same_tokenizer() -> None:
    task([3, 99]).check(DIGEST, 128)


def test_check_names_both_tokenizers() -> None:
    with pytest.raises(VocabularyError, match=r"'math'.*aaaaaaaaaaaa of qwen.*bbbbbbbbbbbb of gemma"):
        task([3], model="qwen").check(OTHER, 100, "gemma")


def test_check_names_id_without_a_row() -> None:
    with pytest.raises(VocabularyError, match=r"holds id 99, .* only 99 rows"):
        task([3, 99]).check(DIGEST, 99)


ID_COUNTS = st.dictionaries(st.integers(0, 30), st.integers(0, 10), max_size=8)


def vocabulary(id_counts: dict[int, int], **changes: Any) -> TaskVocabulary:
    ids = sorted(id_counts)
    return task(ids, [id_counts[id] for id in ids], **changes)


@given(st.lists(ID_COUNTS, min_size=1, max_size=4))
def test_union_adds_counts(parts: list[dict[int, int]]) -> None:
    union = TaskVocabulary.union([vocabulary(part) for part in parts])
    expected = {id: sum(part.get(id, 0) for part in parts) for part in parts for id in part}
    assert dict(zip(union.ids.tolist(), union.counts.tolist(), strict=True)) == expected
    assert union.ids.tolist() == sorted(expected)
    assert union.examples == 10 * len(parts)


def test_union_combines_provenance(tmp_path: Path) -> None:
    a = task(
        [1], name="a", languages=("en", "it"), tolerance=0.01, prior=5, source=({"file": "a", "rows": 1},)
    )
    b = task([2], name="b", languages=("it", "zh"), tolerance=0.1, vocab_size=120)
    union = TaskVocabulary.union([a, b])
    assert (union.name, union.languages, union.tolerance) == ("a+b", ("en", "it", "zh"), 0.1)
    assert (union.prior, union.vocab_size, union.source) == (5, 120, a.source)
    union.save(tmp_path / "union.vt.json")
    assert plain(TaskVocabulary.load(tmp_path / "union.vt.json")) == plain(union)


def test_union_of_two_tokenizers_is_refused() -> None:
    with pytest.raises(VocabularyError, match=r"'a' .*aaaaaaaaaaaa.* and 'b' .*bbbbbbbbbbbb"):
        TaskVocabulary.union([task([1], name="a"), task([1], name="b", tokenizer_digest=OTHER)])


def test_interrupted_save_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "math.vt.json"
    task([1]).save(path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        task([1, 2]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_into_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"absent.*x\.json: cannot be written"):
        task([1]).save(tmp_path / "absent" / "x.json")
