"""Standard streams in processes of their own: encodings, closed and full streams, interrupts.

The commands treat streams alike on every backend; one of them runs the tests that need a model.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.commands import start_cli, start_python
from vt_core.cli import streams

BACKEND = "torch" if importlib.util.find_spec("torch") else "mlx"
ANSWER = "naïve 日本 🙂"

# Prints an answer without a model, as generate does.
PRINT = f"""
import sys
from vt_core import cli
from vt_core.cli.streams import write_json, write_text

def command(prog_name):
    write_json({{"text": {ANSWER!a}}}) if "--json" in sys.argv else write_text({ANSWER!a})

cli.build = lambda backend: command
cli.{BACKEND}()
"""


@pytest.fixture
def model(tiny):
    return tiny("llama")[1]


def finish(process, **options):
    """Exit code, stdout and stderr."""
    with process:
        output, errors = process.communicate(timeout=60, **options)
    return process.returncode, output, errors.decode()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ANSWER.encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ANSWER.encode()),
        ({"PYTHONIOENCODING": "latin-1"}, "naïve ?? ?".encode("latin-1")),
        ({"PYTHONIOENCODING": "utf-8"}, ANSWER.encode()),
    ],
    ids=["ascii", "no locale", "latin-1", "utf-8"],
)
def test_every_encoding_can_show_every_answer(env, expected):
    env = {"PYTHONIOENCODING": "", **env}
    assert finish(start_python(PRINT, env=env)) == (0, expected, "")
    code, output, errors = finish(start_python(PRINT, "--json", env=env))
    assert (code, errors) == (0, "")
    assert json.loads(output.decode("utf-8")) == {"text": ANSWER}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("--version",), ("inspect",)])
def test_full_standard_output_is_one_line_and_code_2(model, arguments):
    given = (*arguments, model) if arguments == ("inspect",) else arguments
    with open("/dev/full", "w") as full:
        code, _, errors = finish(start_cli(BACKEND, *given, stdout=full))
    line = f"vt-{BACKEND}: standard output cannot be written (No space left on device)\n"
    assert (code, errors) == (2, line)


def start_with_closed(descriptor, *arguments):
    shell = {0: "<&-", 1: ">&-", 2: "2>&-"}[descriptor]
    code = f"from vt_core.cli import {BACKEND}; {BACKEND}()"
    words = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_closed_standard_output_is_one_line_and_code_2(model):
    code, _, errors = finish(start_with_closed(1, "inspect", model))
    assert (code, errors) == (2, f"vt-{BACKEND}: standard output cannot be written (Bad file descriptor)\n")


def test_closed_standard_input_is_one_line_and_code_2(model):
    code, output, errors = finish(start_with_closed(0, "generate", "--model", model))
    assert (code, output) == (2, b"")
    assert errors == f"vt-{BACKEND}: standard input cannot be read (Bad file descriptor)\n"


def test_closed_standard_error_loses_messages_only(model):
    code, output, _ = finish(start_with_closed(2, "inspect", model))
    assert code == 0 and b"vocabulary" in output
    code, output, _ = finish(start_with_closed(2, "inspect", model / "nothing"))
    assert (code, output) == (2, b"")


@pytest.mark.parametrize("arguments", [("--help",), ("inspect",)])
def test_closed_pipe_ends_without_a_message(model, arguments):
    given = (*arguments, model) if arguments == ("inspect",) else arguments
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        process = start_cli(BACKEND, *given, stdout=pipe)
    assert finish(process) == (0, None, "")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_control_characters_are_escaped_on_a_terminal_only(monkeypatch):
    text = "a\tb\n\x1b]0;title\x07\x9b31m\r"
    monkeypatch.setattr(sys, "stdout", Terminal())
    streams.write_text(text)
    assert sys.stdout.getvalue() == "a\tb\n\\x1b]0;title\\x07\\x9b31m\\x0d"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    streams.write_text(text)
    assert sys.stdout.getvalue() == text


def test_json_escapes_every_control_character_and_surrogate(monkeypatch):
    value = {"text": "\x1b[31m\x7f\x9b31m naïve", "path": os.fsdecode(b"caf\xe9")}
    monkeypatch.setattr(sys, "stdout", Terminal())
    streams.write_json(value)
    written = sys.stdout.getvalue()
    assert json.loads(written) == value
    assert written.endswith(' naïve", "path": "caf\\udce9"}\n')
    assert not {"\x1b", "\x7f", "\x9b"} & set(written)


def test_interrupt_ends_quietly_with_130(model):
    given = ("generate", "--device", "cpu", "--model", model, "--max-tokens", "450", "--raw", "abc")
    with start_cli(BACKEND, *given) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.decode()) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_conversion_leaves_nothing(tiny, tmp_path, number):
    code = f"""
import signal
import time
from vt_core import cli
from converters import convert

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup

def slow(*arguments):
    print("writing", flush=True)
    time.sleep(60)

convert.__globals__["_write_tables"] = slow
cli.{BACKEND}()
"""
    out = tmp_path / "out"
    with start_python(code, "convert", tiny("llama")[0], out) as process:
        process.stdout.readline()
        assert [path.name for path in tmp_path.iterdir()]
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode()) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_hangup_stays_ignored():
    code = f"""
import os, signal
from vt_core import cli

signal.signal(signal.SIGHUP, signal.SIG_IGN)
cli.build = lambda backend: lambda prog_name: os.kill(os.getpid(), signal.SIGHUP)
cli.{BACKEND}()
"""
    assert finish(start_python(code)) == (0, b"", "")


# Interrupts this process when a module is first imported, as a user does who presses Ctrl-C at once.
AT_IMPORT = """
import importlib.abc, os, signal, sys

class AtImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

from vt_core.cli import {backend}
sys.meta_path.insert(0, AtImport())
{backend}()
"""


@pytest.mark.parametrize(
    "name", ["click", "vt_core.cli.group", "vt_core.cli.bench", "numpy", "vt_core.model"]
)
def test_interrupt_during_start_up_ends_quietly_with_130(model, name):
    code = AT_IMPORT.format(name=name, backend=BACKEND)
    process = start_python(code, "generate", "--model", model, "--max-tokens", "450", "--raw", "abc")
    assert finish(process) == (130, b"", "")


IMPORT = "import slow"
FINALIZER = """
class Slow:
    def __del__(self):
        exec(open(sys.path[-1] + "/slow.py").read())

Slow()
"""


@pytest.mark.parametrize("body", [IMPORT, FINALIZER], ids=["import", "finalizer"])
def test_interrupt_waits_for_imports_and_finalizers(tmp_path, body):
    # As in torch, an exception inside this module aborts the process.
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
cli.{BACKEND}()
"""
    with start_python(code) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode()) == (130, "")
