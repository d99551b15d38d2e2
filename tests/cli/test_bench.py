"""The command bench, from a model to the files of a benchmark."""

from __future__ import annotations

import json
from operator import mul

import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from tests.tiny import PADDING_ROWS
from vt_core.cli import build
from vt_core.measure.bench_report import bench_report
from vt_core.measure.output import folder_lock, load_bench
from vt_core.measure.report import markdown


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"input": text}) + "\n" for text in ("a b c", "the sea", "one more")))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path_factory.getbasetemp() / "bench-cache"))


def bench(backend, *arguments):
    return CliRunner().invoke(build(backend), ["bench", *map(str, arguments)])


@pytest.mark.parametrize("backend", backend_params())
def test_variants_are_measured_and_reported(backend, tiny, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", tiny("llama")[1], "--data", data, "--limit", 2, "--max-tokens", 6]
    arguments += ["--variants", "stock,full,prealloc@600", "--dtype", "float32", "--device", "cpu"]
    done = bench(backend, *arguments, "--out", out)
    assert done.exit_code == 0, done.output
    results = load_bench(out / "results.json")
    rows = {row["variant"]: row for row in results["rows"]}
    assert list(rows) == ["stock", "full", "prealloc@600"]
    for row in rows.values():
        assert row["n"] == 2 and row["dtype"] == "float32" and row["same_tokens"] == [-1, -1]
        assert row["command"] and row["machine"] and row["version"].startswith("0.")
        times = zip(row["ttft_s"], row["decode_s"], row["e2e_s"], row["generated_tokens"], strict=True)
        for ttft, decode, whole, tokens in times:
            assert 0 < ttft <= ttft + decode <= whole + 1e-5 and 1 <= tokens <= 6
        assert row["memory"]["peak_bytes"] >= row["memory"]["loading_peak_bytes"] > 50e6
        assert (row["memory"]["allocator_bytes"] is not None) == (backend == "mlx")
    rows_of_model = results["model"]["vocab_rows"]
    assert rows["stock"]["vocabulary"]["resident_bytes"] == results["model"]["table_bytes"]
    assert rows["full"]["vocabulary"]["static_rows"] == rows_of_model - PADDING_ROWS
    # 600 and the special ids.
    assert 600 <= rows["prealloc@600"]["vocabulary"]["static_rows"] <= 610
    assert rows["prealloc@600"]["exact"] and sum(rows["prealloc@600"]["verifications"]) > 0
    text = (out / "report.md").read_text()
    assert text == markdown(bench_report(results))
    assert "Few prompts (2, fewer than 20)" in text


@pytest.fixture
def drafts(tiny, tmp_path):
    """A task file with an n-gram table beside it, for the tiny model."""
    rows, out = tmp_path / "task.jsonl", tmp_path / "tasks" / "sea.vt.json"
    rows.write_text('{"input": "x", "output": "the sea the sea the sea"}\n' * 9)
    out.parent.mkdir()
    arguments = ["profile", "--model", tiny("llama")[1], "--data", rows, "--out", out]
    done = CliRunner().invoke(build("torch"), [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize("given", ["--task FILE", "--task NAME", "--draft-file FILE"])
def test_drafting_is_measured(tiny, data, drafts, given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--model", tiny("llama")[1], "--data", data, "--limit", 2, "--max-tokens", 24]
    if given == "--task NAME":
        digest = json.loads(drafts.read_text())["tokenizer_digest"]
        drafts.parent.rename(tmp_path / f"tiny-{digest[:12]}")
        monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path))
        arguments += ["--task", "sea"]
    else:
        arguments += [given.removesuffix(" FILE")]
        arguments += [drafts if given == "--task FILE" else drafts.with_name("sea.ngrams")]
    arguments += [
        "--variants",
        "full,full+draft,prealloc,draft,draft@3",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    done = bench("torch", *arguments, "--out", out)
    assert done.exit_code == 0, done.output
    rows = {row["variant"]: row for row in load_bench(out / "results.json")["rows"]}
    assert all(row["same_tokens"] == [-1, -1] for row in rows.values())
    for name in ("full", "prealloc"):
        assert rows[name]["drafted"] == [0, 0] and [each[0] for each in rows[name]["draft_lengths"]] == [0]
    # How much is drafted depends on what reads cost here.
    for name in ("full+draft", "draft", "draft@3"):
        row = rows[name]
        counts = [sum(accepted) for _, accepted, _ in row["draft_lengths"]]
        assert sum(counts) == sum(row["reads"]) > 0
        lengths = [length for length, _, _ in row["draft_lengths"]]
        assert sum(map(mul, lengths, counts)) == sum(row["drafted"])
    assert {each[0] for each in rows["draft@3"]["draft_lengths"]} <= {0, 1, 2, 3}
    assert "## Drafting" in (out / "report.md").read_text()


def test_quantized_model(tiny, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", tiny("llama")[1], "--data", data, "--limit", 1, "--max-tokens", 3, "--minimum", 1]
    arguments += ["--variants", "full", "--quantize", "int8", "--device", "cpu"]
    done = bench("torch", *arguments, "--out", out)
    assert done.exit_code == 0, done.output
    results = load_bench(out / "results.json")
    # A row of 48 values takes one byte for each, and four for its scale.
    resident = results["rows"][0]["vocabulary"]["resident_bytes"]
    assert resident % 52 == 0 and 0 < resident <= results["model"]["vocab_rows"] * 52
    assert "bfloat16, vt in int8" in bench_report(results).title


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data FILE"),
        (["--data", "{data}", "--variants", "stock,fast"], "unknown variant 'fast'"),
        (["--data", "{data}", "--variants", "full", "--sizes", "5000000"], "ordinary ids"),
        (["--data", "{data}", "--draft-file", "{data}"], "variants draft and full+draft"),
        (["--data", "{data}", "--variants", "draft", "--draft-file", "{data}"], "not an n-gram table"),
        (["--data", "{data}", "--input-field", "text"], "line 1: lacks the input"),
        (["--data", "{data}", "--max-tokens", "600"], "no row holds a prompt that fits"),
        (["--data", "{data}", "--memory-limit-search", "split"], "names 'split', which is not"),
        (["--data", "{data}", "--out", "{data}/out"], "prompts.jsonl is not a folder that can be written to"),
        (["--data", "{data}", "--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_user_errors_are_one_line(arguments, message, tiny, data, tmp_path):
    arguments = [each.format(data=data) for each in arguments]
    variants = [] if "--variants" in arguments else ["--variants", "full"]
    done = bench("torch", "--model", tiny("llama")[1], "--out", tmp_path / "out", *variants, *arguments)
    assert done.exit_code == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_run_writes_into_is_refused(tiny, data, tmp_path):
    arguments = ["--model", tiny("llama")[1], "--data", data, "--variants", "full", "--out", tmp_path / "out"]
    with folder_lock(tmp_path / "out"):
        done = bench("torch", *arguments)
    assert done.exit_code == 2 and "another run of bench or eval is writing there" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_mlx_quantized_model_has_no_stock_variant_in_torch(tiny, data, tmp_path):
    model = tiny("llama-4bit")[1]
    done = bench("torch", "--model", model, "--data", data, "--variants", "stock", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "give --variants without stock" in done.stderr
