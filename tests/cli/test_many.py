"""``generate --data``: many prompts, a file of answers."""

from __future__ import annotations

import json

import pytest

from tests.commands import error_of, json_of, run_cli
from tests.conftest import backend_params

pytestmark = pytest.mark.parametrize("backend", backend_params())
ROWS = [{"input": text} for text in ("abc", "a b c", "the cat", "0 1 2", "xyz")]
OPTIONS = ("--raw", "--max-tokens", 4)


@pytest.fixture
def run(backend, tiny):
    def run(*arguments, **options):
        model = ("--device", "cpu", "--dtype", "float32", "--model", tiny("llama")[1])
        return run_cli(backend, "generate", *model, *OPTIONS, *arguments, **options)

    return run


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_single_prompts_in_order(run, tmp_path):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    done = run("--data", data, "--out", out, "--template", "say {input}", "--batch", 3)
    assert done.exit_code == 0, done.output
    assert done.stdout == "" and "tokens/s" in done.stderr
    answers = lines(out)
    for number, (row, answer) in enumerate(zip(ROWS, answers, strict=True)):
        alone = json_of(run("--json", f"say {row['input']}"))
        assert answer["row"] == number and answer["source"] == f"{data}, line {number + 1}"
        for name in ("text", "token_ids", "finish_reason", "prompt_tokens"):
            assert answer[name] == alone[name]


def test_answers_without_out_go_to_stdout(run, tmp_path):
    done = run("--data", write(tmp_path / "rows.jsonl", ROWS))
    assert [json.loads(line)["row"] for line in done.stdout.splitlines()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -40])
def test_interrupted_run_goes_on(run, tmp_path, cut):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run("--data", data, "--out", out).exit_code == 0
    whole = out.read_bytes()
    kept = [answer["text"] for answer in lines(out)]
    out.write_bytes(whole[:cut])
    again = run("--data", data, "--out", out)
    assert again.exit_code == 0, again.output
    assert [answer["text"] for answer in lines(out)] == kept
    complete = out.read_bytes()
    assert run("--data", data, "--out", out).exit_code == 0 and out.read_bytes() == complete


def test_answers_of_another_run_are_refused(run, tmp_path):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run("--data", data, "--out", out).exit_code == 0
    for other in (
        ("--data", data, "--seed", 3),
        ("--data", data, "--template", "so {input}"),
        ("--data", write(tmp_path / "fewer.jsonl", ROWS[:2])),
    ):
        before = out.read_bytes()
        assert "answers another prompt" in error_of(run(*other, "--out", out))
        assert out.read_bytes() == before
    (tmp_path / "text").write_text("some text\n")
    assert "holds other lines than answers" in error_of(run("--data", data, "--out", tmp_path / "text"))


def test_bad_rows_are_reported_by_file_and_line(run, tmp_path):
    rows = [ROWS[0], "{oops\n", {"other": 1}, "\n", {"input": "x" * 3000}, ROWS[1]]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    done = run("--data", data, "--out", out)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert f"{data}, line 2: not valid JSON" in done.stderr
    assert f"{data}, line 3: lacks the input" in done.stderr
    assert f"{data}, line 5: " in done.stderr and "3 rows had errors" in done.stderr
    answers = lines(out)
    assert ["error" in answer for answer in answers] == [False, True, True, True, False]
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3, 4]
    again = run("--data", data, "--out", out)
    assert again.exit_code == 0 and lines(out) == answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x"), "--out goes with --data"),
        (("--template", "{input}", "abc"), "--template goes with --data"),
        (("--data", "rows.jsonl", "abc"), "--data takes the place of PROMPT"),
        (("--data", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_wrong_use_is_refused(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr
