"""The command from rows to its report, on a tiny model of every backend."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from vt_core.cli import build
from vt_core.measure.quality.report import report

pytestmark = pytest.mark.parametrize("backend", backend_params())

ROWS = [{"input": f"ab cd {n}", "output": f"so {n}\n#### {n}"} for n in range(3)]
CORPUS = [{"input": "abc def", "output": "ghi 1"}, {"input": "ab Q", "output": "xyz"}]


@pytest.fixture
def setting(tiny, tmp_path):
    """Arguments of a run on three rows, and the directory that it writes."""
    files = {"data": ROWS, "profile-data": CORPUS}
    arguments = ["--model", tiny("llama")[1], "--preset", "math", "--max-tokens", 6, "--device", "cpu"]
    for name, values in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        arguments += [f"--{name}", path]
    return [*arguments, "--out", tmp_path / "out"], tmp_path / "out"


def run(backend, arguments, *more):
    return CliRunner().invoke(build(backend), ["eval", *map(str, (*arguments, *more))])


def predictions(out):
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {(line["variant"], line["row"]): line for line in lines[1:]}


def test_every_variant_answers_and_the_report_follows_from_the_results(backend, setting):
    arguments, out = setting
    names = ("original", "pruned", "approximate", "exact", "static-only", "dynamic-only")
    done = run(backend, arguments, "--variants", ",".join(names))
    assert done.exit_code == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert (out / "report.md").read_text() == report([results])
    assert done.stdout.strip() == report([results]).strip()
    assert (results["format"], results["n"], results["left_out"], results["task"]) == (
        "vt-eval/1",
        3,
        0,
        "math",
    )
    entries = {entry["name"]: entry for entry in results["variants"]}
    assert tuple(entries) == names and all(entry["n"] == 3 for entry in entries.values())
    assert set(entries["exact"]["metrics"]) == {"accuracy"}
    assert results["settings"]["backend"] == backend and results["versions"]["numpy"]

    texts = {name: [predictions(out)[name, row]["token_ids"] for row in range(3)] for name in names}
    assert texts["exact"] == texts["original"] and entries["exact"]["same_text"] == 3
    assert entries["original"]["kept"] == 1 and entries["original"]["same_text"] == 3
    # What each head held: the static set alone, the request alone, or both.
    assert entries["pruned"]["dynamic_rows"] == entries["static-only"]["dynamic_rows"] == 0
    assert entries["dynamic-only"]["static_rows"] == 3 and entries["dynamic-only"]["dynamic_rows"] > 3
    assert entries["pruned"]["static_rows"] == results["pruning"]["kept_ids"]
    kept = set(json.loads((out / "pruned-tokenizer.json").read_text())["model"]["vocab"].values())
    assert len(kept) == results["pruning"]["kept_ids"]
    for ids in texts["pruned"]:
        assert kept.issuperset(ids)
    assert entries["pruned"]["prompt_tokens"] >= entries["original"]["prompt_tokens"]


def test_the_same_command_goes_on_where_it_was_stopped(backend, setting, monkeypatch):
    arguments, out = setting
    assert run(backend, arguments, "--limit", "2").exit_code == 0
    first = predictions(out)
    asked = []
    from vt_core.model import Model

    real = Model.generate
    monkeypatch.setattr(Model, "generate", lambda *a, **k: asked.append(a) or real(*a, **k))
    assert run(backend, arguments, "--limit", "2").exit_code == 0
    assert asked == [] and predictions(out) == first
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
    assert run(backend, arguments).exit_code == 0
    assert len(asked) == 5 and len(predictions(out)) == 12  # the lost answer, and a row for four variants
    assert first.items() <= predictions(out).items()
    other = run(backend, arguments, "--max-tokens", "7")
    assert other.exit_code == 2 and "max_tokens was 6, and is 7" in other.stderr


def test_few_rows_claim_nothing(backend, setting):
    arguments, out = setting
    run(backend, arguments, "--variants", "original,exact")
    text = (out / "report.md").read_text()
    assert "too few" in text and "3, too few rows" in text and "3, fewer than 20" in text
    run(backend, arguments, "--variants", "original,exact", "--minimum", "3")
    text = (out / "report.md").read_text()
    assert "too few" not in text.lower() and "| 0.00 to 0.00 |" in text


def test_prompts_that_do_not_fit_are_left_out_for_every_variant(backend, setting, tmp_path):
    arguments, out = setting
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps({"input": "z" * 2000, "output": "#### 1"}) + "\n")
    done = run(backend, arguments)
    assert done.exit_code == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["left_out"]) == (3, 1)
    assert "1 left out, too long for the model" in (out / "report.md").read_text()
    (tmp_path / "data.jsonl").write_text(json.dumps({"input": "z" * 2000, "output": "#### 1"}) + "\n")
    done = run(backend, arguments, "--out", tmp_path / "none")
    assert done.exit_code == 2 and "No row could be asked of every variant: the prompt has" in done.stderr


def test_unit_tests_run_in_the_sandbox(backend, setting, tmp_path):
    arguments, out = setting
    row = {"input": "def f():\n    pass\n\n", "output": "", "test": "def check(c): assert c() is None"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row | {"entry_point": "f"}) + "\n")
    more = ("--preset", "code", "--test-field", "test", "--variants", "original", "--template", "{input}#")
    done = run(backend, arguments, *more)
    assert done.exit_code == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    (entry,) = results["variants"]
    # A model of random weights writes no Python: what it puts behind the function does not even parse.
    assert entry["metrics"]["pass@1"]["value"] == 0 and results["sandbox"] is not None
    assert "unit tests ran shut in: " in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--variants", "best"), "Variant 'best' is not known"),
        (("--test-field", "test"), "--test-field goes with --preset code"),
        (("--preset", "translation"), "needs to say into which language"),
        (("--data", "absent.jsonl"), "absent.jsonl: cannot be read"),
        (("--task", "absent.vt.json"), "absent.vt.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(backend, setting, more, message):
    arguments, out = setting
    done = run(backend, arguments, *more)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (out / "results.json").exists()
