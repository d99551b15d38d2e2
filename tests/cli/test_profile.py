"""The `profile` command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.commands import start_python
from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece, write
from vt_core.cli.profile import profile
from vt_core.errors import VtError
from vt_core.profile.counts import Counts
from vt_core.vocab.ngrams import BEGIN, END, NgramTable, context_hashes
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny-model", byte_level([" cat", " dog", "да"], [added(280, "<|end|>")]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"input": f"which {i}?", "output": f"a dog, {i}"} for i in range(20)]
    rows[3]["output"] = "да"
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(profile, list(map(str, arguments)), obj="torch", standalone_mode=False)


def refused(*arguments: Any) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, VtError), result.exception
    return str(result.exception)


def test_vocabulary_is_written_and_its_stages_are_printed(
    tmp_path: Path, tokenizer_json: Path, data: Path
) -> None:
    out = tmp_path / "pets.vt.json"
    result = run("--model", tokenizer_json.parent, "--vocab-rows", 300, "--data", data, "--language", "en",
                 "--tolerance", 0, "--prior", 0, "--out", out)  # fmt: skip
    assert result.exception is None
    task = TaskVocabulary.load(out)
    table = TokenTable.load(tokenizer_json)
    assert {table.text(id) for id in task.ids.tolist()} == {"a", " dog", ","}
    assert (task.name, task.model, task.vocab_size) == ("pets", "tiny-model", 300)
    assert (task.languages, task.tolerance, task.prior, task.examples) == (("en",), 0.0, 0, 20)
    assert dict(task.stages)["vocabulary"] == 300
    assert "20 examples" in result.output and "language" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.jsonl", "pets.ngrams", "pets.vt.json", "tiny-model"
    ]  # fmt: skip


def test_held_out_report_is_written_and_printed(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    out, report = tmp_path / "pets.vt.json", tmp_path / "report.json"
    result = run("--model", tokenizer_json, "--data", data, "--held-out", data, "--miss-rate", 0.33,
                 "--report", report, "--json", "--tolerance", 0, "--prior", 3, "--out", out)  # fmt: skip
    assert result.exception is None
    written = json.loads(report.read_text())
    assert json.loads(result.stdout) == written
    assert written["held_out"]["token_coverage"] == 1.0
    assert written["held_out"]["files"] == ["data.jsonl"]
    assert "0.33" in written["rows_at_miss_rate"]
    assert TaskVocabulary.load(out).held_out == written["held_out"]


def test_saved_counts_merge_to_the_same_vocabulary(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    lines = data.read_text().splitlines(keepends=True)
    model = ("--model", tokenizer_json)
    parts = {"a": lines[:7], "b": lines[7:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
        saved = ("--save-counts", tmp_path / f"{name}.counts", "--out", tmp_path / "x.vt.json")
        run(*model, "--data", tmp_path / f"{name}.jsonl", *saved)
    counts = ["--merge", *(tmp_path / f"{name}.counts" for name in "ba")]
    files = [word for name in "ab" for word in ("--data", tmp_path / f"{name}.jsonl")]
    run(*model, *counts, "--out", tmp_path / "merged.vt.json")
    run(*model, *files, "--out", tmp_path / "whole.vt.json")
    merged, whole = (json.loads((tmp_path / f"{name}.vt.json").read_text()) for name in ("merged", "whole"))
    assert {**merged, "name": ""} == {**whole, "name": ""}


def table_of(path: Path) -> dict[int, list[list[int]]]:
    sections = NgramTable.open(path).sections
    columns = [(part.hashes, part.tokens, part.counts, part.shares) for part in sections]
    return {n: [column.tolist() for column in part] for n, part in enumerate(columns, 1)}


def test_ngram_table_is_written_beside_the_vocabulary(
    tmp_path: Path, tokenizer_json: Path, data: Path
) -> None:
    out = tmp_path / "pets.vt.json"
    report = json.loads(
        run("--model", tokenizer_json, "--data", data, "--ngrams", 3, "--json", "--out", out).stdout
    )
    table = NgramTable.open(tmp_path / "pets.ngrams")
    assert report["ngrams"] == {
        "out": str(tmp_path / "pets.ngrams"),
        "entries": list(table.entries),
        "bytes": 16 * sum(table.entries),
        "min_count": 5,
    }
    assert (table.name, table.model, table.longest, table.examples) == ("pets", "tiny-model", 2, 20)
    dog, comma = 256 + 3 + 2, ord(",")
    found = table.find(context_hashes([BEGIN, ord("a")], 2))
    assert found is not None and found == (2, dog, 19, 1.0)
    found = table.find(context_hashes([dog, comma], 2))
    assert found is not None and found == (2, ord(" "), 19, 1.0)
    assert table.samples[0] == {"context": "", "next": "a dog, 1", "count": 19, "share": 0.95}
    text = run("--model", tokenizer_json, "--data", data, "--ngram-count", 20, "--out", out).output
    assert "n-grams" not in text


def test_saved_counts_merge_to_the_same_table(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    model = ("--model", tokenizer_json, "--ngram-count", 2)
    for shard in (1, 2, 3):
        run(*model, "--data", data, "--shard", f"{shard}/3", "--save-counts", tmp_path / f"{shard}.counts")
    run(
        *model,
        "--merge",
        *(tmp_path / f"{n}.counts" for n in (2, 3, 1)),
        "--out",
        tmp_path / "merged.vt.json",
    )
    run(*model, "--data", data, "--processes", 2, "--out", tmp_path / "whole.vt.json")
    assert table_of(tmp_path / "merged.ngrams") == table_of(tmp_path / "whole.ngrams")
    assert sum(NgramTable.open(tmp_path / "whole.ngrams").entries) > 20


def test_counts_without_ngrams_are_told_of_or_refused(
    tmp_path: Path, tokenizer_json: Path, data: Path
) -> None:
    model, saved = ("--model", tokenizer_json), tmp_path / "a.counts"
    run(*model, "--data", data, "--ngrams", 0, "--save-counts", saved, "--out", tmp_path / "a.vt.json")
    merge = (*model, "--merge", saved, "--out", tmp_path / "x.vt.json")
    assert "a.counts holds no n-grams; count it again, or give --ngrams 0." in refused(*merge, "--ngrams", 4)
    assert not (tmp_path / "x.vt.json").exists()
    assert "a.counts holds no n-grams; the n-gram table will have no others" in run(*merge).stderr
    assert (tmp_path / "x.vt.json").exists() and not (tmp_path / "x.ngrams").exists()


def test_table_of_an_earlier_profile_is_removed(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    command = ("--model", tokenizer_json, "--data", data, "--out", tmp_path / "a.vt.json")
    run(*command)
    assert (tmp_path / "a.ngrams").exists()
    assert "removed" in run(*command, "--ngrams", 0).stderr
    assert not (tmp_path / "a.ngrams").exists()


def test_failed_write_leaves_neither_file(
    tmp_path: Path, tokenizer_json: Path, data: Path, monkeypatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = refused("--model", tokenizer_json, "--data", data, "--out", tmp_path / "a.vt.json")
    assert "cannot be written (No space left on device)" in said
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ngrams", 1], "--ngrams 1 leaves no context"),
        (["--ngrams", 3, "--published"], "--published has no n-gram table"),
        (["--ngrams", 3, "--out", "/dev/null"], "/dev/null is not a regular file"),
    ],
)
def test_ngrams_that_cannot_be_written_are_refused(
    tmp_path: Path, tokenizer_json: Path, data: Path, arguments: list[Any], message: str
) -> None:
    out = ("--out", tmp_path / "x.vt.json")
    assert message in refused("--model", tokenizer_json, "--data", data, *out, *arguments)


def test_own_outputs_make_a_table(tmp_path: Path, tokenizer_json: Path, data: Path, model: FakeModel) -> None:
    inputs = ("--model", tokenizer_json, "--data", data, "--self", "--limit", 6, "--max-tokens", 3)
    run(*inputs, "--out", tmp_path / "own.vt.json")
    table = NgramTable.open(tmp_path / "own.ngrams")
    # The model writes "x?" and ends.
    found = table.find(context_hashes([BEGIN, ord("x"), ord("?")], 4))
    assert found is not None and (found.order, found.token, found.times) == (3, END, 6)
    run(*inputs[:-1], 2, "--out", tmp_path / "cut.vt.json")
    found = NgramTable.open(tmp_path / "cut.ngrams").find(context_hashes([ord("x"), ord("?")], 4))
    assert found is None


def test_published_format_is_written(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    out = tmp_path / "p.json"
    run("--model", tokenizer_json, "--data", data, "--prior", 0, "--rows", 2, "--published", "--out", out)
    published = json.loads(out.read_text())
    assert published.keys() == {"a", "\u0120dog"}
    assert TaskVocabulary.load(out, tokenizer_json).ids.tolist() == sorted(published.values())


class FakeModel:
    """Generates `x`, the last character of the prompt, and the end of text."""

    backend = "torch"
    directory = SimpleNamespace(manifest="m")

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generate(self, prompt: str, max_tokens: int) -> Any:
        self.prompts.append(prompt)
        return SimpleNamespace(token_ids=(ord("x"), ord(prompt[-1]), 280)[:max_tokens])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    loaded = FakeModel()

    def load(path: Any, *, backend: str, head: str, device: str | None, revision: str | None) -> FakeModel:
        assert (backend, head) == ("torch", "full")
        return loaded

    monkeypatch.setattr("vt_core.load", load)
    return loaded


def test_self_counts_the_outputs_of_the_model(
    tmp_path: Path, tokenizer_json: Path, data: Path, model: FakeModel
) -> None:
    inputs = ("--model", tokenizer_json, "--data", data, "--self", "--limit", 5, "--max-tokens", 2)
    arguments = (*inputs, "--prior", 0, "--tolerance", 0, "--save-counts", tmp_path / "s.counts")
    run(*arguments, "--out", tmp_path / "own.vt.json")
    assert model.prompts == [f"which {i}?" for i in range(5)]
    own = TaskVocabulary.load(tmp_path / "own.vt.json")
    assert (own.ids.tolist(), own.counts.tolist(), own.examples) == ([ord("x")], [5], 5)
    run(*arguments, "--self-weight", 3, "--out", tmp_path / "both.vt.json")
    both = Counts.load(tmp_path / "s.counts")
    assert both.examples == 20 + 3 * 5
    assert both.needed[ord("x")] == 15
    assert both.needed[ord("a")] == 19


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("manifest", "another model, revision or chat template"),
        ("backend", "mlx"),
        ("--device", "cuda"),
        ("--max-tokens", 3),
        ("--limit", 4),
        ("tokenizer files", "eos"),
    ],
)
def test_self_resumes_only_for_the_same_model_and_settings(
    tmp_path: Path,
    tokenizer_json: Path,
    data: Path,
    model: FakeModel,
    monkeypatch: Any,
    what: str,
    change: Any,
) -> None:
    out = tmp_path / "own.vt.json"
    options = {"--model": tokenizer_json, "--data": data, "--limit": 5, "--max-tokens": 2, "--out": out}

    def interrupted(with_options: dict[str, Any]) -> int:
        """Prompts of a run that is interrupted after counting."""
        asked = len(model.prompts)
        with monkeypatch.context() as patched:
            patched.setattr("vt_core.profile.profiler.select", interrupt)
            result = run(*[part for pair in with_options.items() for part in pair], "--self")
        assert not out.exists() and "run the same command again" in result.stderr
        return len(model.prompts) - asked

    assert interrupted(options) == 5
    assert interrupted(options) == 0
    if what.startswith("--"):
        options[what] = change
    elif what == "manifest":
        monkeypatch.setattr(model, "directory", SimpleNamespace(manifest=change))
    elif what == "backend":
        monkeypatch.setattr(model, "backend", change)
    else:
        (tokenizer_json.parent / "added_tokens.json").write_text('{"<|new|>": 281}')
    assert interrupted(options) == options["--limit"]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_resumed_run_removes_its_checkpoint(
    tmp_path: Path, tokenizer_json: Path, data: Path, monkeypatch
) -> None:
    out = tmp_path / "pets.vt.json"
    arguments = ("--model", tokenizer_json, "--data", data, "--out", out)
    with monkeypatch.context() as patched:
        patched.setattr("vt_core.profile.profiler.select", interrupt)
        result = run(*arguments)
    assert result.exception is not None
    assert not out.exists()
    assert any(path.name.endswith(".checkpoint") for path in tmp_path.iterdir())
    result = run(*arguments)
    assert "resuming from" in result.stderr
    assert TaskVocabulary.load(out).examples == 20
    assert not any(path.name.endswith(".checkpoint") for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to count; give --data"),
        (["--data", "DATA", "--tolerance", "1"], "tolerance of 1.0 is out of range"),
        (["--data", "DATA", "--tolerance", "0.1", "--rows", "5"], "give one of them"),
        (["--data", "DATA", "--rows", "0"], "budget of 0 rows"),
        (["--data", "DATA", "--language", "tlh"], "Language 'tlh' is not known"),
        (["--data", "DATA", "--plot", "p.png"], "--plot needs held-out data"),
        (["--data", "DATA", "--limit", "3"], "--limit needs --self"),
        (["--merge", "a.counts", "--self"], "--self needs inputs"),
        (
            ["--data", "DATA", "b.jsonl"],
            r"b\.jsonl is not an option's value; put --data or --merge before it",
        ),
        (["--data", "DATA", "--input-field", "absent"], r"data\.jsonl, line 1: lacks the input, \{absent\}"),
        (["--data", "absent.jsonl"], r"absent\.jsonl: cannot be read"),
        (["--data", "DATA", "--held-out", "absent.jsonl"], r"absent\.jsonl: no such file"),
        (["--merge", "absent.counts"], r"absent\.counts: the counts file cannot be read"),
        (["--data", "DATA", "--save-counts", "absent/x"], r"absent/x: the directory does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, tokenizer_json: Path, data: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "x.vt.json"
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    said = refused("--model", tokenizer_json, *given, "--out", out)
    assert re.search(message, said), said
    assert "\n" not in said
    assert not out.exists()


@pytest.mark.parametrize("rows", [[], [{"input": "a", "output": ""}]])
def test_corpus_without_outputs_is_refused(tmp_path: Path, tokenizer_json: Path, rows: list[Any]) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused("--model", tokenizer_json, "--data", path, "--out", tmp_path / "x.vt.json")
    assert "there is nothing to profile" in said


def test_counts_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    other = write(tmp_path / "other", sentencepiece(["ab"]))
    run(
        "--model",
        other,
        "--data",
        data,
        "--save-counts",
        tmp_path / "o.counts",
        "--out",
        tmp_path / "o.vt.json",
    )
    said = refused(
        "--model", tokenizer_json, "--merge", tmp_path / "o.counts", "--out", tmp_path / "x.vt.json"
    )
    assert "o.counts was counted with tokenizer" in said
    assert (
        TokenTable.load(other).digest()[:12] in said and TokenTable.load(tokenizer_json).digest()[:12] in said
    )


def test_file_names_need_not_be_utf8(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    files = {name: folder / os.fsdecode(name.encode() + b"\xfe") for name in ("counts", "report", "plot")}
    corpus, out, model = (folder / os.fsdecode(b"\xfe" + name) for name in (b".jsonl", b".vt.json", b""))
    corpus.write_bytes(data.read_bytes())
    shutil.copytree(tokenizer_json.parent, model)
    result = run("--model", model, "--data", corpus, "--held-out", corpus, "--save-counts", files["counts"],
                 "--report", files["report"], "--plot", files["plot"], "--json", "--out", out)  # fmt: skip
    assert result.exception is None
    assert json.loads(result.stdout) == json.loads(files["report"].read_text())
    assert TaskVocabulary.load(out).examples == Counts.load(files["counts"]).examples == 20
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    assert "\\udcff/absent" in refused("--model", model, "--data", folder / "absent.jsonl", "--out", out)


def test_tokens_named_only_beside_tokenizer_json_are_counted(tmp_path: Path) -> None:
    tokenizer = write(tmp_path / "m", byte_level(["cat"]))
    (tokenizer.parent / "tokenizer_config.json").write_text('{"eos_token": "<|done|>"}')
    corpus, out = tmp_path / "a.jsonl", tmp_path / "a.vt.json"
    corpus.write_text('{"input": "x", "output": "cat<|done|>"}\n')
    result = run("--model", tokenizer.parent, "--data", corpus, "--prior", 0, "--tolerance", 0,
                 "--save-counts", tmp_path / "c", "--out", out)  # fmt: skip
    assert result.exception is None
    counts, table = Counts.load(tmp_path / "c"), TokenTable.load(tokenizer)
    assert counts.tokens == 2
    assert [table.tokens[id] for id in counts.written.nonzero()[0]] == ["cat", "<|done|>"]


@pytest.mark.parametrize("option", ["--out", "--report", "--plot", "--save-counts"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_full_disk_is_one_sentence(tmp_path: Path, tokenizer_json: Path, data: Path, option: str) -> None:
    options = {"--out": tmp_path / "x.vt.json", option: "/dev/full"}
    said = refused("--model", tokenizer_json, "--data", data, "--held-out", data,
                   *(part for pair in options.items() for part in pair))  # fmt: skip
    assert said == "/dev/full: cannot be written (No space left on device)."
    assert not [path for path in Path("/dev").iterdir() if path.name.endswith(".checkpoint")]


def test_interrupt_while_counting_leaves_a_checkpoint_and_no_other_file(
    tmp_path: Path, tokenizer_json: Path
) -> None:
    path, saved = tmp_path / "big.jsonl", tmp_path / ".x.vt.json.count.checkpoint"
    path.write_text("".join(f'{{"input": "{i}", "output": "cat {i * i}"}}\n' for i in range(200_000)))
    code = "from vt_core.profile import checkpoint; checkpoint.INTERVAL = 0\n"
    code += "from vt_core.cli import torch; torch()"
    arguments = ("profile", "--model", tokenizer_json, "--data", path, "--out", tmp_path / "x.vt.json")
    process = start_python(code, *arguments, "--processes", 2)
    deadline = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said, said
    assert b"run the same command again to resume" in said
    assert {name for name in os.listdir(tmp_path) if name.startswith((".", "x"))} == {saved.name}
    assert 0 < Counts.load(saved).examples < 200_000


def test_merged_shards_equal_the_whole_corpus(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    model = ("--model", tokenizer_json, "--tolerance", 0.1)
    (tmp_path / "whole").mkdir()
    (tmp_path / "merged").mkdir()
    assert run(*model, "--data", data, "--out", tmp_path / "whole" / "x.vt.json").exception is None
    parts = [tmp_path / f"{shard}.counts" for shard in (1, 2, 3)]
    for shard, part in zip((1, 2, 3), parts, strict=True):
        result = run(
            "--model", tokenizer_json, "--data", data, "--shard", f"{shard}/3", "--save-counts", part
        )
        assert result.exception is None, result.exception
        assert f"{part}: {Counts.load(part).examples} examples, 0 rows skipped" in result.stdout
    assert run(*model, "--merge", *parts, "--out", tmp_path / "merged" / "x.vt.json").exception is None
    whole, merged = (tmp_path / name / "x.vt.json" for name in ("whole", "merged"))
    assert merged.read_bytes() == whole.read_bytes()


def test_merge_knows_the_shards(tmp_path: Path, tokenizer_json: Path, data: Path) -> None:
    parts = [tmp_path / f"{shard}.counts" for shard in (1, 2, 3)]
    for shard, part in zip((1, 2, 3), parts, strict=True):
        run("--model", tokenizer_json, "--data", data, "--shard", f"{shard}/3", "--save-counts", part)
    model, out = ("--model", tokenizer_json, "--tolerance", 0.1), ("--out", tmp_path / "x.vt.json")
    two = tmp_path / "two.counts"
    result = run(*model, "--merge", parts[2], parts[0], "--save-counts", two, *out)
    assert result.exception is None and "not merged: shards 2/3\n" in result.stderr
    assert [str(shard) for shard in Counts.load(two).shards] == ["1/3", "3/3"]
    result = run(*model, "--merge", two, parts[1], *out)
    assert result.exception is None and "not merged" not in result.stderr
    said = refused(*model, "--merge", two, parts[0], *out)
    assert "Shard 1/3 of the same files is in two counts files; merge it once." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "1/2"), "--shard counts a part of --data FILE into --save-counts FILE; give both."),
        (("--shard", "3/2", "--save-counts", "c"), "--shard 3/2 is not I/N"),
        (("--shard", "1/2", "--save-counts", "c", "--out", "o"), "--out needs all counts; give it when"),
        (("--shard", "1/2", "--save-counts", "c", "--self"), "--self needs all counts"),
        (("--shard", "1/2", "--engine", "ray"), "--shard is for this machine; leave out --engine ray."),
        (("--processes", "2", "--engine", "spark"), "--processes is for this machine"),
        (("--master", "local", "--out", "o"), "--master needs --engine spark."),
        ((), "there is no output; give --out FILE."),
    ],
)  # fmt: skip
def test_engine_and_shard_options_that_contradict_are_refused(
    tokenizer_json: Path, data: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("--model", tokenizer_json, "--data", data, *arguments)


@pytest.mark.parametrize(("engine", "module"), [("spark", "pyspark.errors"), ("ray", "ray")])
def test_missing_engine_error_says_what_to_install(
    tmp_path: Path, tokenizer_json: Path, data: Path, monkeypatch, engine: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = refused("--model", tokenizer_json, "--data", data, "--engine", engine, "--out", tmp_path / "o")
    assert message.endswith(f"install it with pip install 'vt[{engine}]'.")


def test_engine_without_data_is_refused(tmp_path: Path, tokenizer_json: Path) -> None:
    message = refused("--model", tokenizer_json, "--merge", "c", "--engine", "ray", "--out", tmp_path / "o")
    assert message == "--engine ray has nothing to count; give --data."
