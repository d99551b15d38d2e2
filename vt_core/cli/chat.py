"""``chat``: turns on a terminal, or one turn per line of standard input."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.generate import summary
from vt_core.cli.loading import loading_arguments, loading_options, template_arguments, template_options
from vt_core.cli.options import (
    FILE,
    approximate_option,
    draft_option,
    draft_tokens_option,
    max_tokens_option,
    sampling_options,
    stop_option,
    system_option,
    verbose_option,
)
from vt_core.cli.streams import escape_text, log_shown, write_text
from vt_core.errors import VtError
from vt_core.files.json_files import decode_text

if TYPE_CHECKING:
    from vt_core import Session

_HELP = """\
/system TEXT   start over with this system message
/reset         forget all turns
/edit TEXT     replace your last turn, and answer it
/save [FILE]   save the conversation
/quit          end (also: end of file)
A line that ends with a backslash goes on in the next one. Ctrl-C stops an answer."""


@click.command()
@loading_options
@max_tokens_option()
@stop_option
@system_option
@template_options
@sampling_options
@approximate_option
@draft_option
@draft_tokens_option
@click.option(
    "--session",
    "file",
    type=FILE,
    metavar="FILE",
    help="Go on with the conversation in FILE if it exists, with the options that it was saved with; save it "
    "there at the end.",
)
@verbose_option
@click.pass_obj
def chat(backend: str, file: Path | None, verbose: bool, **options: Any) -> None:
    """Hold a conversation; the model's caches are kept between turns.

    On a terminal, /help lists what can be typed. From a pipe or file, each line is a turn.

    \b
    Examples:
      vt-torch chat
      vt-torch chat --model Qwen/Qwen2.5-0.5B-Instruct --system "Answer in one sentence."
      vt-torch chat --session talk.safetensors
      printf 'Name a fruit.\\nAnother one.\\n' | vt-torch chat
    """
    options["template_arguments"] = template_arguments(options)
    loading = loading_arguments(options)
    from vt_core import load
    from vt_core.decode.options import request_options

    request_options(**options)  # refuses wrong ones before the model is loaded
    with log_shown(verbose):
        model = load(backend=backend, progress=sys.stderr.isatty() or verbose, **loading)
    session = model.load_session(file) if file is not None and file.exists() else model.session(**options)
    with session:
        if sys.stdin.isatty():
            _Terminal(session, file, verbose).run()
        else:
            for line in _lines():
                _answer(session, line, verbose)
        if file is not None:
            session.save(file)


def _lines() -> Iterator[str]:
    """Lines of standard input that are not blank."""
    for line in sys.stdin.buffer:
        text = decode_text(line, "standard input", VtError).rstrip("\r\n")
        if text.strip():
            yield text


def _answer(session: Session, text: str, verbose: bool, interrupts: list[int] | None = None) -> None:
    """Add a turn, or with no text answer the last one; stream the answer until there are interrupts."""
    result = None
    with contextlib.closing(session.stream(text) if text else session.stream()) as chunks:
        for chunk in chunks:
            write_text(chunk.text)
            result = chunk.result
            if interrupts:
                break
    write_text("\n")
    if verbose and result is not None:
        click.echo(summary(result), err=True)


@contextlib.contextmanager
def _collected_interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C in a list, so that it ends an answer between two tokens: the caches stay
    whole. A second one raises KeyboardInterrupt.
    """
    interrupts: list[int] = []

    def interrupted(number: int, frame: FrameType | None) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


class _Terminal:
    """A conversation with somebody who types."""

    def __init__(self, session: Session, file: Path | None, verbose: bool) -> None:
        self._session, self._file, self._verbose = session, file, verbose

    def run(self) -> None:
        """Ask for turns until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() editing and history)
        click.echo("/help lists what can be typed.", err=True)
        while (line := self._read()) is not None:
            command, _, rest = line.strip().partition(" ")
            try:
                if command == "/quit":
                    return
                self._obey(command, rest.strip(), line)
            except KeyboardInterrupt:
                write_text("\n")
            except VtError as error:
                click.echo(str(error), err=True)

    def _read(self) -> str | None:
        """A turn, maybe of several lines; empty where it was interrupted, None at the end of the input."""
        lines: list[str] = []
        try:
            while True:
                line = input("... " if lines else "> ")
                lines.append(line.removesuffix("\\"))
                if not line.endswith("\\"):
                    return "\n".join(lines)
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            click.echo(err=True)
            return ""

    def _answer(self, text: str) -> None:
        with _collected_interrupts() as interrupts:
            _answer(self._session, text, self._verbose, interrupts)

    def _obey(self, command: str, rest: str, line: str) -> None:
        session = self._session
        if not command.startswith("/"):
            if line.strip():
                self._answer(line)
        elif command == "/help":
            click.echo(_HELP, err=True)
        elif command == "/reset":
            session.reset()
        elif command == "/system":
            session.messages = [{"role": "system", "content": rest}] if rest else []
        elif command == "/edit":
            turns = [at for at, message in enumerate(session.messages) if message["role"] == "user"]
            if not turns or not rest:
                click.echo("/edit needs a turn before it, and a text", err=True)
                return
            session.edit(turns[-1], rest)
            self._answer("")
        elif command == "/save":
            file = Path(rest) if rest else self._file
            if file is None:
                click.echo("/save needs a file name", err=True)
                return
            session.save(file)
            click.echo(f"saved {escape_text(str(file))}", err=True)
        else:
            click.echo(f"unknown command {escape_text(command)}; /help lists them", err=True)
