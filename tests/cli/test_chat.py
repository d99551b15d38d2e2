"""``chat``: a turn per line from a pipe, and what can be typed on a terminal."""

from __future__ import annotations

import json

import pytest

from tests.commands import error_of, run_cli
from tests.conftest import backend_params
from vt_core import load
from vt_core.cli import chat

every_backend = pytest.mark.parametrize("backend", backend_params())
LINES = "abc def\n\nghi jkl\r\n"


@pytest.fixture
def model_options(tiny):
    return ["--model", tiny("llama")[1], "--device", "cpu", "--dtype", "float32", "--max-tokens", 8]


@every_backend
def test_each_line_of_a_pipe_is_a_turn(backend, model_options, tiny):
    done = run_cli(backend, "chat", *model_options, input=LINES)
    with load(tiny("llama")[1], backend=backend, device="cpu", dtype="float32").session(
        max_tokens=8
    ) as session:
        texts = [session.send(turn).text for turn in ("abc def", "ghi jkl")]
    assert (done.exit_code, done.stdout) == (0, "".join(f"{text}\n" for text in texts))


@every_backend
def test_a_session_file_goes_on(backend, model_options, tmp_path):
    file = tmp_path / "talk.safetensors"
    together = run_cli(backend, "chat", *model_options, input=LINES).stdout
    parts = [
        run_cli(backend, "chat", *model_options, "--session", file, input=line).stdout
        for line in ("abc def\n", "ghi jkl\n")
    ]
    assert "".join(parts) == together


def test_what_is_not_a_session_is_refused(model_options, tmp_path, backend="torch"):
    file = tmp_path / "talk.safetensors"
    file.write_bytes(b"hello")
    assert "talk.safetensors" in error_of(
        run_cli(backend, "chat", *model_options, "--session", file, input=LINES)
    )
    assert file.read_bytes() == b"hello"


def typed(session, monkeypatch, lines, file=None):
    """Type lines into a terminal; an exception among them is raised where it stands."""
    given = iter([*lines, EOFError()])

    def read(_prompt):
        line = next(given)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    chat._Terminal(session, file, verbose=False).run()


@pytest.fixture
def session(tiny):
    model = load(tiny("llama")[1], backend="torch", device="cpu", dtype="float32")
    return model.session(max_tokens=4)


def roles(session):
    return [
        (message["role"], message["content"])
        for message in session.messages
        if message["role"] != "assistant"
    ]


def test_terminal_commands(session, monkeypatch, tmp_path, capsys):
    file = tmp_path / "talk.safetensors"
    typed(
        session,
        monkeypatch,
        ["/help", "/system jkl", "abc \\", "def", "/edit ghi", f"/save {file}", "/no"],
    )
    assert roles(session) == [("system", "jkl"), ("user", "ghi")]
    assert "/reset" in (shown := capsys.readouterr().err) and "unknown command /no" in shown
    assert file.exists()
    typed(session, monkeypatch, ["/reset", "/quit", "abc"])
    assert roles(session) == [("system", "jkl")]


def test_commands_that_lack_something_say_so(session, monkeypatch, capsys):
    typed(
        session, monkeypatch, ["/save", "/edit x", "/save /nowhere/talk.safetensors", "", KeyboardInterrupt()]
    )
    shown = capsys.readouterr().err
    assert "/save needs a file name" in shown and "/edit needs a turn" in shown and "/nowhere" in shown
    assert session.messages == []


def test_interrupt_ends_an_answer_and_keeps_the_conversation(session, monkeypatch):
    import os
    import signal

    verify = session._model.decoder.verify

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return verify(*arguments)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(session._model.decoder, "verify", interrupted)
        typed(session, patched, ["abc"])
    assert signal.getsignal(signal.SIGINT) is before
    user, answer = session.messages
    assert user["content"] == "abc" and session.cached_tokens > 0
    assert len(session._model.tokenizer.encode(answer["content"], special=False)) < 4
    json.dumps(session.messages)
