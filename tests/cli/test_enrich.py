"""``enrich`` on a random model: what it writes, says and refuses."""

from __future__ import annotations

import json

import pytest

from converters import convert
from tests.commands import error_of, json_of, run_cli
from tests.conftest import backend_params
from tests.stock import GENERATE, LOAD
from vt_core import load
from vt_core.decode.constraints.engine import Engine
from vt_core.decode.constraints.grammar import grammar_option
from vt_core.profile import Profiler
from vt_core.vocab.merges import Merges
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer

ROWS = [{"input": f"row {at}", "output": f"select the course where id is {at % 3}"} for at in range(8)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def enriched(request, tiny, tmp_path_factory):
    """(source, enriched directory, report) of a tied and of an untied model."""
    root = tmp_path_factory.mktemp("enriched")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = tiny(request.param)[0]
    arguments = ("--data", root / "train.jsonl", "--rows", 30, "--max-collision", 1, "--out", root / "out")
    done = run_cli("torch", "enrich", "--model", source, *arguments, "--plot", root / "curve.png", "--json")
    assert (root / "curve.png").read_bytes().startswith(b"\x89PNG")
    return source, root / "out", json_of(done)


def test_report_counts_tokens_before_and_after(enriched):
    _, out, report = enriched
    assert report["examples"] == 8 and report["rows"] == len(report["merged"]) <= 30
    assert report["tokens_after"] < report["tokens_before"]
    assert report["fewer_steps"] == (report["tokens_before"] + 8) / (report["tokens_after"] + 8)
    first = report["curve"][0]
    assert (first["rows"], first["tokens"]) == (0, report["tokens_before"])
    merges = Merges.beside(out / "tokenizer.json")
    assert {entry["id"]: tuple(entry["parts"]) for entry in report["merged"]} == merges.parts
    texts = TokenTable.load(out / "tokenizer.json").bytes
    assert [entry["text"].encode() for entry in report["merged"]] == [texts[id] for id in merges]


@pytest.mark.parametrize("backend", backend_params())
def test_generated_ids_are_the_stock_frameworks(enriched, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path))
    _, out, report = enriched
    prompt = [5, 40, 7, report["merged"][0]["id"]]
    with load(out, backend=backend, dtype="float32") as model:
        found = model.generate(prompt, max_tokens=8).token_ids
        vocabulary = model.decoder.head.vocabulary
        static = vocabulary.ids[: vocabulary.static_size].tolist()
        assert set(Merges.beside(out / "tokenizer.json")) <= set(static)
        expected, _ = GENERATE[backend](LOAD[backend](out, "float32"), prompt, 8, model.eos_ids)
    assert list(found) == list(expected)


def test_inspect_counts_merged_tokens(enriched, tmp_path):
    _, out, report = enriched
    convert(out, tmp_path / "vt", progress=False)
    assert json_of(run_cli("torch", "inspect", tmp_path / "vt", "--json"))["merged_tokens"] == report["rows"]
    assert "merged tokens" in run_cli("torch", "inspect", tmp_path / "vt").stdout


def test_outputs_are_encoded_with_merged_tokens(enriched):
    _, out, _ = enriched
    tokenizer = Tokenizer(out)
    ids = tokenizer.encode_output(ROWS[0]["output"])
    assert set(ids) & set(tokenizer.merges) and tokenizer.decode(ids) == ROWS[0]["output"]
    assert tokenizer.merges.expand(ids) == tokenizer.encode(ROWS[0]["output"]).tolist()


def test_a_grammar_takes_merged_tokens_for_their_text(enriched):
    pytest.importorskip("llguidance")
    _, out, _ = enriched
    tokenizer, table = Tokenizer(out), TokenTable.load(out / "tokenizer.json")
    merged = tokenizer.encode_output(ROWS[1]["output"])
    engine = Engine(table, table.size, [0], tokenizer.encode_output)
    constraint = engine.start(grammar_option(regex="select the course where id is [0-9]"))
    for id in merged:
        constraint.advance(id)
    assert constraint.finished


def test_profile_counts_merged_tokens(enriched, corpus):
    _, out, report = enriched
    profiler = Profiler(out / "tokenizer.json")
    merges = Merges.beside(out / "tokenizer.json")
    expected = {id for row in ROWS for id in merges.apply(profiler.tokenizer.encode(row["output"]).ids)}
    counts = profiler.count([corpus])
    assert set(counts.written.nonzero()[0].tolist()) == expected and expected & set(merges)
    assert counts.tokens == report["tokens_after"]


def test_an_enriched_model_is_enriched_on_top(enriched, corpus, tmp_path):
    _, out, report = enriched
    again = ("--max-collision", 1, "--rows", 2, "--out", tmp_path / "again", "--json")
    second = run_cli("torch", "enrich", "--model", out, "--data", corpus, *again)
    if report["rows"] < 30:  # everything that occurs twice is merged already
        assert "No n-gram" in error_of(second)
        return
    merges = Merges.beside(tmp_path / "again" / "tokenizer.json")
    assert set(Merges.beside(out / "tokenizer.json")) < set(merges)
    assert json_of(second)["tokens_before"] == report["tokens_after"]


def test_fewer_rows_than_asked_for_are_said(tiny, corpus, tmp_path):
    model = tiny("llama")[0]
    arguments = ("--data", corpus, "--rows", 5000, "--out", tmp_path / "out")
    done = run_cli("torch", "enrich", "--model", model, *arguments)
    assert done.exit_code == 0, done.output
    assert "not 5,000: no other n-gram occurs twice" in done.stdout and "times fewer steps" in done.stdout


def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, corpus, tmp_path):
    model, out = tiny("llama")[0], tmp_path / "out"
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"input": "a", "output": ""}\n')
    once = tmp_path / "once.jsonl"
    once.write_text('{"input": "a", "output": "ab"}\n')

    def error(*arguments):
        return error_of(run_cli("torch", "enrich", "--model", model, "--out", out, *arguments))

    assert "has an output" in error("--data", empty)
    assert "No n-gram of the outputs can become a token" in error("--data", once)
    assert "directory does not exist" in error("--data", corpus, "--report", tmp_path / "no" / "x.json")
    assert "--rows is 0" in error("--data", corpus, "--rows", 0)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert "exists" in error("--data", corpus)
