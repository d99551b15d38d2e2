"""The command eval, from rows to its report, on a tiny model."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from vt_core.cli import build
from vt_core.measure.eval_report import eval_report
from vt_core.measure.output import folder_lock
from vt_core.measure.report import markdown
from vt_core.vocab.task import TaskVocabulary

pytestmark = pytest.mark.slow

ROWS = [
    *({"input": f"ab cd {n}", "output": f"so {n}\n#### {n}"} for n in range(3)),
    {"input": "z" * 9000, "output": "#### 1"},  # longer than the context
]
CORPUS = [{"input": "abc def", "output": "ghi 1"}, {"input": "ab Q", "output": "xyz"}]
#: The backend that starts fastest, as every variant is a process.
BACKEND = backend_params()[-1 if find_spec("mlx_lm") else 0]
VARIANTS = ("original", "pruned", "approximate", "exact", "static-only", "dynamic-only")


def write_rows(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def run(backend, arguments, *more):
    return CliRunner().invoke(build(backend), ["eval", *map(str, (*arguments, *more))])


def predictions(out):
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {(line["variant"], line["row"]): line for line in lines[1:]}


@pytest.fixture(scope="module", params=[BACKEND])
def evaluated(request, tiny, tmp_path_factory):
    """Backend, arguments, output folder and standard output of one run of all variants."""
    folder = tmp_path_factory.mktemp("eval")
    arguments = ["--model", tiny("llama")[1], "--preset", "math", "--max-tokens", 6, "--device", "cpu"]
    arguments += ["--data", write_rows(folder / "data.jsonl", ROWS)]
    arguments += ["--profile-data", write_rows(folder / "corpus.jsonl", CORPUS)]
    arguments += ["--variants", ",".join(VARIANTS), "--out", folder / "out"]
    done = run(request.param, arguments)
    assert done.exit_code == 0, done.stderr
    return request.param, arguments, folder / "out", done.stdout


def test_report_follows_from_results(evaluated):
    backend, _, out, stdout = evaluated
    results = json.loads((out / "results.json").read_text())
    text = markdown(eval_report([results]))
    assert (out / "report.md").read_text() == text and stdout.strip() == text.strip()
    assert (results["format"], results["task"]) == ("vt-eval/1", "math")
    assert (results["n"], results["left_out"]) == (3, 1)
    assert "1 left out, too long for the model" in text
    assert text.count("Few rows (3, fewer than 20)") == 1 and "| 0.00 to 0.00 |" in text
    assert results["settings"]["backend"] == backend and results["versions"]["numpy"]
    entries = {entry["name"]: entry for entry in results["variants"]}
    assert tuple(entries) == VARIANTS and all(entry["n"] == 3 for entry in entries.values())
    assert set(entries["exact"]["metrics"]) == {"accuracy"}


def test_variants_hold_the_rows_that_define_them(evaluated):
    _, _, out, _ = evaluated
    results = json.loads((out / "results.json").read_text())
    entries = {entry["name"]: entry for entry in results["variants"]}
    answers = predictions(out)
    texts = {name: [answers[name, row]["token_ids"] for row in range(3)] for name in VARIANTS}
    assert texts["exact"] == texts["original"] and entries["exact"]["same_text"] == 3
    assert entries["original"]["kept"] == 1 and entries["original"]["same_text"] == 3
    assert entries["pruned"]["dynamic_rows"] == entries["static-only"]["dynamic_rows"] == 0
    assert entries["dynamic-only"]["static_rows"] == 3 and entries["dynamic-only"]["dynamic_rows"] > 3
    assert entries["pruned"]["static_rows"] == results["pruning"]["kept_ids"]
    kept = set(json.loads((out / "pruned-tokenizer.json").read_text())["model"]["vocab"].values())
    assert len(kept) == results["pruning"]["kept_ids"]
    for ids in texts["pruned"]:
        assert kept.issuperset(ids)
    assert entries["pruned"]["prompt_tokens"] >= entries["original"]["prompt_tokens"]


def test_same_command_resumes(evaluated, tmp_path):
    backend, arguments, out, _ = evaluated
    copy = shutil.copytree(out, tmp_path / "copy")
    lines = (copy / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "predictions.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:9])
    for name in ("results.json", "report.md"):
        (copy / name).unlink()
    done = run(backend, arguments, "--out", copy)
    assert done.exit_code == 0, done.stderr
    after = (copy / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    assert after[:-2] == lines[:-2], "kept answers are not asked again"
    assert predictions(copy).keys() == predictions(out).keys()
    assert json.loads((copy / "results.json").read_text())["n"] == 3


def test_other_settings_do_not_resume(evaluated):
    backend, arguments, out, _ = evaluated
    before = (out / "predictions.jsonl").read_bytes()
    other = run(backend, arguments, "--max-tokens", "7")
    assert other.exit_code == 2 and "max_tokens was 6 and is now 7" in other.stderr
    assert (out / "predictions.jsonl").read_bytes() == before


@pytest.mark.parametrize("backend", backend_params()[:1])
def test_unit_tests_run_in_the_sandbox(backend, tiny, tmp_path):
    row = {"input": "def f():\n    pass\n\n", "output": "", "test": "def check(c): assert c() is None"}
    data = write_rows(tmp_path / "data.jsonl", [row | {"entry_point": "f"}])
    arguments = ["--model", tiny("llama")[1], "--data", data, "--max-tokens", 6, "--device", "cpu"]
    arguments += [
        "--preset",
        "code",
        "--test-field",
        "test",
        "--variants",
        "original",
        "--template",
        "{input}#",
    ]
    done = run(backend, arguments, "--variants", "original", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (entry,) = results["variants"]
    # A model with random weights does not write Python: what it appends does not parse.
    assert entry["metrics"]["pass@1"]["value"] == 0 and results["sandbox"] is not None
    assert "unit tests ran in a sandbox: " in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_that_another_run_writes_into_is_refused(evaluated):
    backend, arguments, out, _ = evaluated
    before = (out / "predictions.jsonl").read_bytes()
    with folder_lock(out):
        done = run(backend, arguments)
    assert done.exit_code == 2 and "another run of bench or eval is writing there" in done.stderr
    assert (out / "predictions.jsonl").read_bytes() == before


@pytest.mark.parametrize("backend", [BACKEND])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--variants", "best"), "unknown variant 'best'"),
        (("--test-field", "test"), "--test-field goes with --preset code"),
        (("--preset", "translation"), "must name its target language"),
        (("--data", "absent.jsonl"), "absent.jsonl: cannot be read"),
        (("--task", "absent.vt.json"), "absent.vt.json"),
        (("--task", "absent"), "no task of that name"),
        (("--device", "abacus"), "device 'abacus'"),
    ],
)
def test_user_errors_are_one_line(backend, tiny, tmp_path, more, message):
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    arguments = ["--model", tiny("llama")[1], "--preset", "math", "--data", data]
    done = run(backend, arguments, *more, "--out", tmp_path / "out")
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", [BACKEND])
def test_task_is_taken_from_the_collection_by_name(backend, tiny, tmp_path, monkeypatch):
    model = tiny("llama")[1]
    digest = json.loads((model / "vt.json").read_text())["tokenizer_digest"]
    ids = np.arange(5, 25)
    (tmp_path / f"tiny-{digest[:12]}").mkdir()
    file = tmp_path / f"tiny-{digest[:12]}" / "letters.vt.json"
    TaskVocabulary("letters", digest, 300, ids, ids * 0).save(file)
    monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path))
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    arguments = ["--model", model, "--preset", "math", "--max-tokens", 2, "--device", "cpu", "--data", data]
    arguments += ["--limit", 1, "--variants", "exact", "--task", "letters", "--out", tmp_path / "out"]
    done = run(backend, arguments)
    assert done.exit_code == 0, done.stderr
    assert len(predictions(tmp_path / "out")) == 1


@pytest.fixture(scope="module", params=[BACKEND])
def compared(request, tiny, tmp_path_factory):
    """Backend, arguments, folder and output: a model beside another, and beside itself with drafts."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny("llama")[1]
    data = write_rows(folder / "data.jsonl", ROWS)
    table = ["--model", model, "--data", data, "--ngrams", 3, "--out", folder / "math.vt.json"]
    assert CliRunner().invoke(build(request.param), ["profile", *map(str, table)]).exit_code == 0
    arguments = ["--model", model, "--preset", "math", "--max-tokens", 6, "--device", "cpu", "--data", data]
    arguments += ["--compare", f"other={tiny('qwen2')[1]}", "--compare", f"drafted={model}"]
    arguments += ["--draft-file", f"drafted={folder / 'math.ngrams'}", "--out", folder / "out"]
    done = run(request.param, arguments)
    assert done.exit_code == 0, done.stderr
    return request.param, arguments, folder / "out", done.stdout


def test_models_answer_the_same_rows(compared):
    _, _, out, stdout = compared
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["left_out"]) == (3, 1)
    assert [(entry["name"], entry["drafts"]) for entry in results["models"]] == [
        *(("base", False), ("other", False), ("drafted", True))
    ]
    answers = predictions(out)
    for entry in results["models"]:
        own = [answers[entry["name"], row] for row in range(3)]
        characters = sum(len(answer["text"]) for answer in own)
        seconds = sum(answer["e2e_s"] for answer in own)
        assert entry["characters_per_s"]["value"] == pytest.approx(characters / seconds)
        assert entry["tokens"]["value"] == pytest.approx(
            sum(len(answer["token_ids"]) for answer in own) / len(own)
        )
        assert set(entry["metrics"]) == {"accuracy"}
    base, other, _ = results["models"]
    assert base["speed"] is None and base["metrics"]["accuracy"]["difference"] is None
    assert other["speed"] == pytest.approx(
        other["characters_per_s"]["value"] / base["characters_per_s"]["value"]
    )
    for row in range(3):
        assert answers["base", row]["token_ids"] == answers["drafted", row]["token_ids"]
    assert (out / "report.md").read_text().strip() == stdout.strip()
    assert "| drafted | yes |" in stdout and "characters/s" in stdout


def test_a_comparison_resumes(compared, tmp_path):
    backend, arguments, out, _ = compared
    copy = shutil.copytree(out, tmp_path / "copy")
    lines = (copy / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "predictions.jsonl").write_bytes(b"".join(lines[:-1]))
    done = run(backend, arguments, "--out", copy)
    assert done.exit_code == 0, done.stderr
    assert (copy / "predictions.jsonl").read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]
    assert predictions(copy).keys() == predictions(out).keys()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--compare", "twice"], "give NAME=VALUE"),
        (["--compare", "base=x"], "base is the name of --model"),
        (["--compare", "a=x", "--compare", "a=y"], "gives 'a' twice"),
        (["--compare", "a=x", "--variants", "exact"], "leave out --compare or --variants"),
        (["--compare", "a=x", "--draft-file", "b=y"], "names 'b', which is not a model"),
        (["--draft-file", "a=y"], "--draft-file goes with --compare"),
    ],
)
@pytest.mark.parametrize("backend", [BACKEND])
def test_models_that_cannot_be_compared_are_refused(backend, more, expected, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", ROWS[:1])
    done = run(backend, ["--preset", "math", "--data", data, "--out", tmp_path / "out", *more])
    assert done.exit_code == 2 and expected in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
