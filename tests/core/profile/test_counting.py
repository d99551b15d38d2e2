from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.profile.small_tokenizers import byte_level, write
from vt_core.errors import DataError, PromptError
from vt_core.profile import counting, readers
from vt_core.profile.batch_counts import ExampleReader
from vt_core.profile.checkpoint import Checkpoint, run_signature
from vt_core.profile.counting import count_files
from vt_core.profile.counts import Counts, merge_all
from vt_core.profile.own_outputs import count_own_outputs
from vt_core.profile.row_format import RowFormat, make_row_format
from vt_core.vocab.tokenizer import load_tokenizer

DIGEST = "a" * 64
EMPTY = Counts.empty(DIGEST, 300)


@pytest.fixture(scope="module")
def tokenizer_json() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        yield write(Path(directory), byte_level([" cat", " dog", "the"]))


def corpus(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(input: str, output: str) -> dict[str, str]:
    return {"input": input, "output": output}


def ids(tokenizer_json: Path, text: str) -> list[int]:
    return load_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids


def reader(
    tokenizer_json: Path, row_format: RowFormat | None = None, skip_bad: bool = False
) -> ExampleReader:
    return ExampleReader(load_tokenizer(tokenizer_json), row_format or RowFormat(), skip_bad)


def nonzero(column: Any) -> dict[int, int]:
    return {id: count for id, count in enumerate(column.tolist()) if count}


def test_counts_examples_not_occurrences(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [row("x", "aab"), row("a", "ab"), row("z", "a")])
    counts = count_files([file], reader(tokenizer_json), EMPTY)
    a, b = ord("a"), ord("b")
    assert nonzero(counts.needed) == {a: 2, b: 2}
    assert nonzero(counts.written) == {a: 3, b: 2}
    assert (counts.examples, counts.tokens, counts.copied, counts.bad_rows) == (3, 6, 1, 0)
    assert counts.source == ({"file": "a.jsonl", "rows": 3},)


def test_template_counts_as_input(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [row("x", "ab")])
    counts = count_files([file], reader(tokenizer_json, make_row_format(template="a: {input}")), EMPTY)
    assert nonzero(counts.needed) == {ord("b"): 1}


def test_row_without_output_is_not_an_example(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [row("x", ""), row("", "a")])
    counts = count_files([file], reader(tokenizer_json), EMPTY)
    assert (counts.examples, counts.bad_rows) == (1, 0)
    assert counts.source == ({"file": "a.jsonl", "rows": 2},)


texts = st.text("abc cat dog the", max_size=12)
rows = st.lists(st.builds(row, texts, texts), max_size=30)


@settings(deadline=None, max_examples=50)
@given(rows=rows)
def test_counts_match_their_definition(tokenizer_json: Path, rows: list[dict[str, str]]) -> None:
    needed: Counter[int] = Counter()
    written: Counter[int] = Counter()
    for one in rows:
        seen = set(ids(tokenizer_json, one["output"]))
        written.update(seen)
        needed.update(seen - set(ids(tokenizer_json, one["input"])))
    with tempfile.TemporaryDirectory() as directory:
        counts = count_files([corpus(Path(directory) / "a.jsonl", rows)], reader(tokenizer_json), EMPTY)
    assert nonzero(counts.needed) == needed
    assert nonzero(counts.written) == written


@settings(deadline=None, max_examples=30)
@given(rows=rows, data=st.data())
def test_merged_shards_equal_the_whole_corpus(
    tokenizer_json: Path, rows: list[dict[str, str]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    with tempfile.TemporaryDirectory() as directory:
        parts = [
            corpus(Path(directory) / name, part)
            for name, part in (("a.jsonl", rows[:cut]), ("b.jsonl", rows[cut:]))
        ]
        together = count_files(parts, reader(tokenizer_json), EMPTY)
        apart = [count_files([part], reader(tokenizer_json), EMPTY) for part in reversed(parts)]
    files = {entry["file"]: entry["rows"] for entry in merge_all(apart).source}
    assert {**merge_all(apart).fields(), "source": None} == {**together.fields(), "source": None}
    assert files == {entry["file"]: entry["rows"] for entry in together.source}


def test_counts_do_not_depend_on_processes(tmp_path: Path, tokenizer_json: Path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 200)
    files = [
        corpus(tmp_path / f"{name}.jsonl", [row(f"cat {i % 7}", f"the dog {i}") for i in range(100)])
        for name in "ab"
    ]
    alone = count_files(files, reader(tokenizer_json), EMPTY)
    seen: list[int] = []
    shared = count_files(files, reader(tokenizer_json), EMPTY, processes=2, on_rows=seen.append)
    assert shared.fields() == alone.fields()
    assert sum(seen) == 200
    assert len(seen) > 4


def test_bad_row_in_a_worker_process_is_named(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [row("x", "y"), {"input": "x"}])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: lacks the output, output\."):
        count_files([file], reader(tokenizer_json), EMPTY, processes=2)


def die(batch: object) -> None:
    os._exit(1)


def test_killed_worker_process_is_reported(tmp_path: Path, tokenizer_json: Path, monkeypatch) -> None:
    monkeypatch.setattr(counting, "_count_batch", die)
    file = corpus(tmp_path / "a.jsonl", [row("x", "y")])
    with pytest.raises(DataError, match=r"process was killed.*--processes"):
        count_files([file], reader(tokenizer_json), EMPTY, processes=2)


KILLED = """
import os, signal, sys
from vt_core.profile.counting import count_files
from vt_core.profile.counts import Counts
from vt_core.profile.batch_counts import ExampleReader
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.tokenizer import load_tokenizer

if __name__ == "__main__":
    def kill(rows):
        os.kill(os.getpid(), signal.SIGKILL)

    reader = ExampleReader(load_tokenizer(sys.argv[2]), RowFormat())
    count_files([sys.argv[1]], reader, Counts.empty("x", 300), processes=2, on_rows=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_workers_exit_when_their_parent_is_killed(tmp_path: Path, tokenizer_json: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    file = corpus(tmp_path / "a.jsonl", [row("x", "y")])
    command = [sys.executable, str(tmp_path / "killed.py"), str(file), str(tokenizer_json)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # The pipe stays open as long as any worker lives, so this waits for all of them.
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL


BAD = [
    ("{", "not valid JSON"),
    ("3", "not a JSON object with fields"),
    ('{"output": "x"}', "lacks the input"),
    ('{"input": "x"}', "lacks the output"),
    ('{"input": "x", "output": 3}', "field 'output' holds 3, not text"),
    ('{"input": "\\ud800", "output": "x"}', "surrogate"),
    ("\udcff", "not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_line_is_named_by_file_and_line(
    tmp_path: Path, tokenizer_json: Path, line: str, message: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"input": "x", "output": "y"}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: .*{message}"):
        count_files([file], reader(tokenizer_json), EMPTY)


def test_skip_bad_skips_and_counts_bad_lines(tmp_path: Path, tokenizer_json: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [line for line, _ in BAD]
    text = "\n".join([*lines, '{"input": "x", "output": "y"}', *lines])
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    counts = count_files([file], reader(tokenizer_json, skip_bad=True), EMPTY)
    assert (counts.examples, counts.bad_rows) == (1, 2 * len(BAD))
    assert nonzero(counts.written) == {ord("y"): 1}


class Stop(Exception):
    pass


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> list[Path]:
    """Three files of 40 rows, read in chunks of a few rows."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 200)
    lines = [[row(f"cat {i}", f"{name} dog {i}") for i in range(40)] for name in "abc"]
    return [corpus(tmp_path / f"{name}.jsonl", part) for name, part in zip("abc", lines, strict=True)]


@pytest.mark.parametrize("stop_after", [1, 39, 40, 41, 77, 119])
def test_interrupted_count_resumes_at_the_same_row(
    tmp_path: Path, tokenizer_json: Path, files: list[Path], stop_after: int
) -> None:
    whole = count_files(files, reader(tokenizer_json), EMPTY)
    signature = run_signature(files, DIGEST, RowFormat())
    seen = 0

    def interrupt(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen >= stop_after:
            raise Stop

    with pytest.raises(Stop):
        count_files(
            files,
            reader(tokenizer_json),
            EMPTY,
            checkpoint=Checkpoint(tmp_path / "c", signature),
            on_rows=interrupt,
        )
    rest: list[int] = []
    resumed = count_files(
        files,
        reader(tokenizer_json),
        EMPTY,
        checkpoint=Checkpoint(tmp_path / "c", signature),
        on_rows=rest.append,
    )
    assert resumed.fields() == whole.fields()
    assert seen + sum(rest) == 120


def test_killed_count_resumes_from_the_last_checkpoint(
    tmp_path: Path, tokenizer_json: Path, files: list[Path], monkeypatch
) -> None:
    signature = run_signature(files)
    saved: list[bytes] = []
    checkpoint = Checkpoint(tmp_path / "c", signature, interval=0.0)
    count_files(
        files,
        reader(tokenizer_json),
        EMPTY,
        checkpoint=checkpoint,
        on_rows=lambda rows: saved.append(checkpoint.path.read_bytes()),
    )
    whole = count_files(files, reader(tokenizer_json), EMPTY)
    for content in saved[:: len(saved) // 5]:
        (tmp_path / "c").write_bytes(content)
        again = count_files(
            files, reader(tokenizer_json), EMPTY, checkpoint=Checkpoint(tmp_path / "c", signature)
        )
        assert again.fields() == whole.fields()


def test_checkpoint_of_other_settings_is_ignored(
    tmp_path: Path, tokenizer_json: Path, files: list[Path]
) -> None:
    def signature(row_format: RowFormat, skip_bad: bool = False) -> str:
        return run_signature(files, DIGEST, row_format, skip_bad)

    first = signature(RowFormat())
    count_files(files, reader(tokenizer_json), EMPTY, checkpoint=Checkpoint(tmp_path / "c", first))
    assert Checkpoint(tmp_path / "c", first).load() is not None
    others = [
        signature(make_row_format("math")),
        signature(RowFormat(), True),
        run_signature(files[1:], DIGEST, RowFormat(), False),
    ]
    with files[0].open("a") as file:
        file.write("\n")
    others.append(signature(RowFormat()))
    assert all(Checkpoint(tmp_path / "c", other).load() is None for other in others)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"resume": 3}', '{"resume": {}}'])
def test_damaged_checkpoint_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "c").write_text(content)
    assert Checkpoint(tmp_path / "c", "x").load() is None


def test_checkpoint_is_a_counts_file(tmp_path: Path, tokenizer_json: Path, files: list[Path]) -> None:
    checkpoint = Checkpoint(tmp_path / "c", run_signature(files))
    counts = count_files(files, reader(tokenizer_json), EMPTY, checkpoint=checkpoint)
    assert Counts.load(tmp_path / "c").fields() == counts.fields()
    checkpoint.clear()
    assert not (tmp_path / "c").exists()


def test_signature_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        run_signature([tmp_path / "absent.jsonl"])


def test_own_outputs_replace_the_outputs_of_the_files(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [{"input": "ab"}, {"input": "cd"}])
    asked: list[tuple[str, int]] = []

    def generate(prompt: str, max_tokens: int) -> list[int]:
        asked.append((prompt, max_tokens))
        return [ord("a"), ord("a"), ord("x"), 299]

    row_format, always = make_row_format(template="Q {input}"), np.array([299])
    counts = count_own_outputs(
        [file], tokenizer_json, EMPTY, row_format, generate, max_tokens=7, always=always
    )
    assert asked == [("Q ab", 7), ("Q cd", 7)]
    assert nonzero(counts.needed) == {ord("a"): 1, ord("x"): 2}
    assert nonzero(counts.written) == {ord("a"): 2, ord("x"): 2}
    assert (counts.examples, counts.tokens, counts.copied) == (2, 6, 2)


def test_own_outputs_stop_at_the_limit_and_resume(
    tmp_path: Path, tokenizer_json: Path, files: list[Path]
) -> None:
    asked: list[str] = []

    def generate(prompt: str, max_tokens: int) -> list[int]:
        asked.append(prompt)
        return [ord(prompt[-1])]

    def stop(rows: int) -> None:
        if len(asked) == 41:
            raise Stop

    def run(on_rows: Any, name: str) -> Counts:
        checkpoint = Checkpoint(tmp_path / name, "signature")
        return count_own_outputs(
            files,
            tokenizer_json,
            EMPTY,
            RowFormat(),
            generate,
            limit=50,
            checkpoint=checkpoint,
            on_rows=on_rows,
        )

    with pytest.raises(Stop):
        run(stop, "c")
    resumed = run(lambda rows: None, "c")
    assert len(asked) == 50
    assert resumed.source == ({"file": "a.jsonl", "rows": 40}, {"file": "b.jsonl", "rows": 10})
    assert resumed.fields() == run(lambda rows: None, "d").fields()


def test_refused_prompt_is_named(tmp_path: Path, tokenizer_json: Path) -> None:
    file = corpus(tmp_path / "a.jsonl", [{"input": "ab"}, {"input": ""}])

    def generate(prompt: str, max_tokens: int) -> list[int]:
        if not prompt:
            raise PromptError("the prompt is empty")
        return [1]

    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the prompt is empty"):
        count_own_outputs([file], tokenizer_json, EMPTY, RowFormat(), generate)
    counts = count_own_outputs([file], tokenizer_json, EMPTY, RowFormat(), generate, skip_bad=True)
    assert (counts.examples, counts.bad_rows) == (1, 1)
