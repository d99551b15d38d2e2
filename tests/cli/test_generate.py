"""The command as a user meets it: output, errors, interrupts. On every backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import backend_params
from tests.manifests import update_manifest
from vt_core import __version__
from vt_core.cli import build
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import tokenizer_digest

pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture
def model(tiny):
    return tiny("llama")[1]


def run(backend, *arguments, stdin=None):
    return CliRunner().invoke(
        build(backend), ["generate", "--device", "cpu", *map(str, arguments)], input=stdin
    )


def fails(backend, *arguments, stdin=None):
    """The one line on stderr of a run that must end with code 2 and print nothing."""
    done = run(backend, *arguments, stdin=stdin)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_text_goes_to_stdout_and_the_summary_to_stderr(backend, model):
    done = run(backend, "--model", model, "--max-tokens", "5", "-v", "abc")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "+ 5 tokens, length" in done.stderr and "head prealloc" in done.stderr
    quiet = run(backend, "--model", model, "--max-tokens", "5", "abc")
    assert quiet.stdout == done.stdout and quiet.stderr == ""


def test_weights_may_be_quantized_while_loading(backend, model):
    asked = ("--model", model, "--max-tokens", "5", "--json")
    if backend == "mlx":
        assert "vt-mlx convert --quantize 4" in fails(backend, *asked, "--quantize", "int4", "abc")
        return
    plain = json.loads(run(backend, *asked, "--dtype", "bfloat16", "abc").stdout)
    for mode in ("int8", "int4"):
        done = run(backend, *asked, "--quantize", mode, "abc")
        assert (done.exit_code, done.stderr) == (0, "")
        result = json.loads(done.stdout)
        # A row of 48 values: 96 bytes in bfloat16, and 48 with a scale of two.
        assert result["vocab_bytes_resident"] * 96 == plain["vocab_bytes_resident"] * 50
        assert (result["quantization"], result["dtype"], result["generated_tokens"]) == (mode, "bfloat16", 5)


FIELDS = """
    text token_ids finish_reason prompt_tokens generated_tokens exact head backend device dtype seed
    quantization vocab_rows static_rows learned_rows dynamic_rows vocab_bytes_full vocab_bytes_resident
    ttft_s tpot_s tokens_per_s
    peak_memory_bytes peak_anonymous_bytes verifications rescued rolled_back verify_s
    rescue_s rolled_back_s
"""


def test_json_is_one_object_with_every_field(backend, model):
    done = run(
        backend,
        "--model",
        model,
        "--max-tokens",
        "6",
        "--json",
        "--seed",
        "11",
        "--temperature",
        "0.7",
        "abc",
    )
    result = json.loads(done.stdout)
    assert sorted(result) == sorted(FIELDS.split())
    assert (result["generated_tokens"], len(result["token_ids"]), result["finish_reason"]) == (6, 6, "length")
    assert (result["seed"], result["head"], result["backend"]) == (11, "prealloc", backend)
    assert result["vocab_rows"] == 2280 and result["vocab_bytes_full"] == 2280 * 48 * 4
    assert result["ttft_s"] > 0 and result["peak_memory_bytes"] > 1e5
    assert result["tokens_per_s"] == pytest.approx(1 / result["tpot_s"])


def test_prompt_comes_from_argument_file_or_stdin(backend, model, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("abc def")
    options = ("--model", model, "--max-tokens", "4")
    expected = run(backend, *options, "abc def").stdout
    assert run(backend, *options, "--prompt-file", file).stdout == expected
    assert run(backend, *options, stdin="abc def").stdout == expected
    assert run(backend, *options, "-", stdin="abc def").stdout == expected
    assert run(backend, *options, "--prompt-file", file, "x").exit_code == 2


def test_system_raw_and_stop_change_what_is_run(backend, model):
    def result(*extra):
        return json.loads(
            run(backend, "--model", model, "--json", "--max-tokens", "12", *extra, "abc").stdout
        )

    plain, system, raw = result(), result("--system", "be brief"), result("--raw")
    assert raw["prompt_tokens"] < plain["prompt_tokens"] < system["prompt_tokens"]
    stop = plain["text"][3:5]
    stopped = result("--stop", stop)
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_arguments_of_the_chat_template_and_tools_reach_it(backend, tiny, tmp_path):
    import shutil

    model = shutil.copytree(tiny("llama")[1], tmp_path / "model")
    template = "{{ messages[0].content }}{{ mood }}{% for tool in tools or [] %}{{ tool.name }}{% endfor %}"
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    update_manifest(model)
    (tmp_path / "tools.json").write_text('[{"name": "weather"}]')

    def tokens(*extra):
        done = run(backend, "--model", model, "--json", "--max-tokens", "1", *extra, "ab ")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)["prompt_tokens"]

    mood = ("--chat-template-kwargs", '{"mood": "sunny"}')
    tools = ("--tools", tmp_path / "tools.json")
    plain = tokens()
    assert plain < tokens(*mood) < tokens(*mood, *tools)
    assert plain < tokens(*tools)
    assert "not valid JSON" in fails(backend, "--model", model, "--chat-template-kwargs", "mood=sunny", "ab")
    assert "holds no JSON object" in fails(backend, "--model", model, "--chat-template-kwargs", "[1]", "ab")
    (tmp_path / "tools.json").write_text("{}")
    assert "holds no JSON list" in fails(backend, "--model", model, *tools, "ab")
    assert "cannot be read" in fails(backend, "--model", model, "--tools", tmp_path / "none.json", "ab")
    assert run(backend, "--model", model, "--raw", *mood, "ab").exit_code == 2


@pytest.mark.parametrize("head", ["prealloc", "split", "rebuild", "full"])
@pytest.mark.parametrize("store", ["lmdb", "ram"])
def test_every_head_and_store_runs(backend, model, head, store):
    result = json.loads(
        run(
            backend, "--model", model, "--head", head, "--store", store, "--max-tokens", "4", "--json", "ab"
        ).stdout
    )
    assert (result["head"], result["generated_tokens"]) == (head, 4)
    reference = json.loads(
        run(backend, "--model", model, "--head", head, "--max-tokens", "4", "--json", "ab").stdout
    )
    assert result["token_ids"] == reference["token_ids"]


def test_the_tile_may_have_any_size(backend, model):
    tokens = []
    for options in ((), ("--tile-mb", "0.000001"), ("--tile-mb", "0.003"), ("--tile-mb", "64")):
        result = json.loads(
            run(backend, "--model", model, "--max-tokens", "8", *options, "--json", "ab").stdout
        )
        assert result["verifications"] > 0
        tokens.append(result["token_ids"])
    assert tokens[1:] == tokens[:1] * 3
    for size in ("0", "nan", "inf"):
        assert run(backend, "--model", model, "--tile-mb", size, "ab").exit_code == 2


def test_task_vocabularies_become_the_static_rows(backend, model, tmp_path):
    digest = tokenizer_digest(model / "tokenizer.json")
    for name, ids in (("one", [300, 301]), ("two", [301, 302])):
        save_task(tmp_path / f"{name}.vt.json", digest, ids)
    options = ("--model", model, "--json", "--max-tokens", "3", "--raw", "ab")
    single = json.loads(run(backend, "--task", tmp_path / "one.vt.json", *options).stdout)
    both = json.loads(
        run(backend, "--task", tmp_path / "one.vt.json", "--task", tmp_path / "two.vt.json", *options).stdout
    )
    assert (single["static_rows"], both["static_rows"]) == (2 + 3, 3 + 3)  # with three special tokens


def save_task(path, digest, ids):
    TaskVocabulary(
        name=path.stem,
        tokenizer_digest=digest,
        vocab_size=2280,
        prior=0,
        ids=np.array(ids),
        counts=np.ones(len(ids), np.int64),
        examples=1,
    ).save(path)


def test_bad_input_gets_one_line_and_code_2(backend, model, tmp_path):
    assert "does not exist" in fails(backend, "--model", tmp_path / "nowhere", "hi")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails(backend, "--model", tmp_path / "empty", "hi")
    assert "prompt is empty" in fails(backend, "--model", model, "  \n")
    assert "prompt is empty" in fails(backend, "--model", model, stdin="")
    assert "standard input cannot be read as text" in fails(backend, "--model", model, stdin=b"caf\xe9")
    too_long = fails(backend, "--model", model, "--raw", "--max-tokens", "100", "zq " * 400)
    assert "context of 512" in too_long and "--max-tokens" in too_long
    assert "no-such-file" in fails(backend, "--model", model, "--prompt-file", tmp_path / "no-such-file")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    assert "latin1.txt cannot be read as text" in fails(
        backend, "--model", model, "--prompt-file", tmp_path / "latin1.txt"
    )
    assert "temperature is -1.0" in fails(backend, "--model", model, "--temperature", "-1", "hi")
    assert "stop string is empty" in fails(backend, "--model", model, "--stop", "", "hi")
    assert "no-such-task" in fails(
        backend, "--model", model, "--task", tmp_path / "no-such-task.vt.json", "hi"
    )
    for device in ("abacus", "meta"):
        assert f"'{device}'" in fails(backend, "--model", model, "--device", device, "hi")
    assert "system message" in fails(backend, "--model", model, "--raw", "--system", "x", "hi")


def test_another_tokenizers_task_is_refused_by_both_names(backend, model, tmp_path):
    save_task(tmp_path / "other.vt.json", "sha256:" + "0" * 64, [1])
    line = fails(backend, "--model", model, "--task", tmp_path / "other.vt.json", "hi")
    assert "tokenizer" in line and "0000" in line


def _overwrite(file, content):
    with open(file, "r+b") as opened:
        opened.write(content)


def test_truncated_and_foreign_model_directories_are_refused(backend, tiny, tmp_path):
    import shutil

    for name, damage in (
        ("short", lambda d: os.truncate(d / "vocab.lmdb" / "data.mdb", 5000)),
        (
            "version",
            lambda d: (d / "vt.json").write_text(
                (d / "vt.json").read_text().replace('"format_version": 2', '"format_version": 99')
            ),
        ),
        ("json", lambda d: (d / "vt.json").write_text("{")),
        ("tokenizer", lambda d: (d / "tokenizer.json").unlink()),
        # As long as it was, so that only reading it shows.
        ("weights", lambda d: _overwrite(d / "model.safetensors", b"x" * 16)),
    ):
        broken = tmp_path / name
        shutil.copytree(tiny("llama")[1], broken)
        damage(broken)
        assert str(broken) in fails(backend, "--model", broken, "hi")


def test_version(backend):
    done = CliRunner().invoke(build(backend), ["--version"])
    assert done.output == f"vt-{backend}, version {__version__}\n"


def start(backend, model):
    code = f"import sys; from vt_core.cli import {backend}; {backend}()"
    command = [
        sys.executable,
        "-c",
        code,
        "generate",
        "--device",
        "cpu",
        "--model",
        str(model),
        "--max-tokens",
        "450",
        "--raw",
        "abc",
    ]
    return begin(command)


def begin(command):
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background, SIGINT is ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_an_interrupt_ends_quietly_with_130(backend, model):
    with start(backend, model) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.decode().strip()) == (130, "")


IMPORT = "import slow"
FINALIZER = """
class Slow:
    def __del__(self):
        exec(open(sys.path[-1] + "/slow.py").read())

Slow()
"""


@pytest.mark.parametrize("body", [IMPORT, FINALIZER], ids=["import", "finalizer"])
def test_an_interrupt_waits_where_an_exception_would_do_harm_or_be_lost(backend, tmp_path, body):
    # As torch: what it is made of cannot stand an exception.
    (tmp_path / "slow.py").write_text("""
import os, time
try:
    os.write(1, b"begun")
    time.sleep(0.5)
except BaseException:
    os.abort()
""")
    code = f"""
import sys, time
from vt_core import cli
sys.path.append({str(tmp_path)!r})

def command(prog_name):
    exec({body!r}, globals())
    time.sleep(60)

cli.build = lambda backend: command
cli.{backend}()
"""
    with begin([sys.executable, "-c", code]) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode().strip()) == (130, "")


def test_a_closed_pipe_ends_without_noise(backend, model):
    with start(backend, model) as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, errors.decode().strip()) == (0, "")
