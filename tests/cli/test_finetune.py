"""``finetune`` on a random model: what it writes, says and refuses, and how it resumes."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from safetensors import SafetensorError

from tests.commands import error_of, json_of, run_cli, start_cli
from vt_core import load
from vt_core.enrich.training import Example, choose, end_id, rare_ids, read_examples, split
from vt_core.errors import DataError
from vt_core.profile import RowFormat
from vt_core.vocab.merges import Merges
from vt_core.vocab.tokenizer import Tokenizer

ROWS = [{"input": f"row {at}", "output": f"the id is {at % 3}"} for at in range(20)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def enriched(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("enriched")
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ("--data", root / "train.jsonl", "--rows", 8, "--max-collision", 1, "--out", root / "out")
    json_of(run_cli("torch", "enrich", "--model", tiny("llama")[0], *arguments, "--json"))
    return root / "out"


def test_outputs_have_merged_tokens_and_an_end(enriched, corpus):
    tokenizer = Tokenizer(enriched)
    merges = Merges.beside(tokenizer.path)
    found = read_examples([corpus], tokenizer, RowFormat(), raw=True, max_length=999).kept
    for example, row in zip(found, ROWS, strict=True):
        prompt, output = example.ids[: example.prompt], example.ids[example.prompt :]
        assert prompt == tokenizer.encode(row["input"]).tolist()
        assert output[-1] == end_id(tokenizer, raw=True) == 0
        assert tokenizer.decode(output) == row["output"]
        assert set(output) & set(merges)
        assert merges.expand(output[:-1]) == tokenizer.encode(row["output"]).tolist()


def test_with_the_chat_template_outputs_end_with_the_turn(enriched, corpus):
    tokenizer = Tokenizer(enriched)
    found = read_examples(
        [corpus], tokenizer, RowFormat(), raw=False, system="Be brief.", max_length=999
    ).kept
    assert end_id(tokenizer, raw=False) == tokenizer.id_of("<|im_end|>") == found[0].ids[-1]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "row 0"}]
    assert found[0].ids[: found[0].prompt] == tokenizer.encode_chat(messages).tolist()


def test_long_examples_are_left_out_and_counted(enriched, corpus):
    tokenizer = Tokenizer(enriched)
    every = read_examples([corpus], tokenizer, RowFormat(), raw=True, max_length=999).kept
    longest = max(len(example.ids) for example in every)
    found = read_examples([corpus], tokenizer, RowFormat(), raw=True, max_length=longest - 1)
    assert found.too_long == sum(len(example.ids) == longest for example in every) > 0
    with pytest.raises(DataError, match="no example"):
        read_examples([corpus], tokenizer, RowFormat(), raw=True, max_length=2)
    corpus.write_text('{"input": "a", "output": ""}\n')
    with pytest.raises(DataError, match="no row has a prompt and an output"):
        read_examples([corpus], tokenizer, RowFormat(), raw=True, max_length=999)


def test_splits_and_choices_do_not_overlap_and_depend_on_the_seed():
    examples = [Example([at], 0) for at in range(40)]
    train, held = split(examples, 0.1, seed=1)
    assert len(held) == 4 and sorted(train + held, key=lambda e: e.ids) == examples
    assert split(examples, 0.1, seed=2)[1] != held and split(examples, 0, seed=1) == (examples, [])
    assert [len(part) for part in split(examples[:2], 0.01, seed=1)] == [1, 1]
    assert choose(examples, 5, 3) == choose(examples, 5, 3) != choose(examples, 5, 4)
    assert choose(examples, None, 3) == examples


def test_rare_ids_are_in_fewer_than_five_outputs():
    examples = [Example([7, 8, 1, 1], 2)] * 4 + [Example([9, 2], 1)] * 5
    assert rare_ids(examples, [1, 2, 7, 8]) == [1, 7, 8]


@pytest.fixture
def command(enriched, corpus):
    pytest.importorskip("trl")
    return (
        *("finetune", "--model", enriched, "--data", corpus, "--raw", "--eval-share", 0.2, "--epochs", 2),
        *("--batch-size", 4, "--learning-rate", 0.01, "--rank", 4),
        *("--rows-learning-rate", 0.01),
    )


def test_directory_holds_model_adapter_and_curve(command, enriched, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    done = run_cli("torch", *command, "--out", out, "--json")
    report = json_of(done)
    assert (report["examples"], report["evaluation_examples"], report["steps"]) == (16, 4, 8)
    evaluated = [point["loss"] for point in report["curve"] if point["evaluation"]]
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((out / "training.json").read_text())
    assert (written["settings"]["rank"], written["settings"]["rows_learning_rate"]) == (4, 0.01)
    assert (written["template"], written["system"], written["raw"]) == ("{input}", None, True)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 4
    rare, merged = report["rare_merged_tokens"], report["merged_tokens"]
    assert 0 < rare < merged
    assert f"{rare} of {merged} merged tokens are in fewer than 5 examples" in done.stderr
    assert not list(tmp_path.glob(".out*"))
    assert (out / "merges.json").read_text() == (enriched / "merges.json").read_text()
    with load(out, dtype="float32") as model:
        assert model.generate("row 1", raw=True, max_tokens=4).token_ids


@pytest.mark.slow
def test_a_killed_run_resumes(command, tmp_path):
    out = tmp_path / "out"
    process = start_cli("torch", *command, "--out", out)
    for line in process.stderr:
        if b"evaluation" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stderr.close(), process.stdout.close()
    work = tmp_path / ".out.training"
    assert not out.exists() and work.is_dir()
    done = run_cli("torch", *command, "--out", out)
    assert done.exit_code == 0 and out.is_dir() and not work.exists(), done.output
    assert "8 updates" in done.stdout


def test_checkpoints_of_another_run_are_not_used(command, tmp_path):
    work = tmp_path / ".out.training"
    work.mkdir()
    (work / "run").write_text("another")
    (work / "checkpoints").mkdir()
    done = run_cli("torch", *command, "--epochs", 1, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "resuming" not in done.stderr, done.output


def test_bad_input_is_one_sentence(command, tmp_path, corpus):
    def error(*arguments):
        return error_of(run_cli("torch", *command, "--out", tmp_path / "out", *arguments))

    assert "10 examples cannot be computed 4 at a time" in error("--batch-size", 10)
    assert "leave out one" in error("--eval-data", corpus)
    assert "at most 3" in error("--max-length", 3)
    assert "--full gives all weights one rate" in error("--full")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert "exists" in error()
    shutil.rmtree(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device"), "cannot be written"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "make room and run the same"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "a smaller --micro-batch"),
    ],
)
def test_a_full_disk_or_memory_is_one_sentence(raised, expected, command, tmp_path, monkeypatch):
    import vt_torch.finetune

    def fail(*arguments):
        raise raised

    monkeypatch.setattr(vt_torch.finetune, "finetune", fail)
    result = run_cli("torch", *command, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    rare, error = result.stderr.splitlines()
    assert "merged tokens are in fewer than 5 examples" in rare
    assert expected in error
    assert not (tmp_path / "out").exists()
