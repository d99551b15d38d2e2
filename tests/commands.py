"""Running the commands in tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from click.testing import CliRunner, Result

from vt_core.cli import build


def run_cli(backend: str, *arguments: object, input: str | bytes | None = None) -> Result:
    """Run a command in this process. Arguments are turned into text."""
    return CliRunner().invoke(
        build(backend), [str(argument) for argument in arguments], input=input, prog_name=f"vt-{backend}"
    )


def json_of(result: Result) -> Any:
    """The one JSON value that a successful run printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    """The one line on stderr of a run that failed with code 2 and printed nothing."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


def start_cli(backend: str, *arguments: object, **options: Any) -> subprocess.Popen:
    """Start a command in a process of its own: for signals, and for streams that pytest replaces."""
    code = f"from vt_core.cli import {backend}; {backend}()"
    return start_python(code, *arguments, **options)


def start_python(code: str, *arguments: object, env: dict[str, str] | None = None, **options: Any):
    """Start Python code in a process of its own, with pipes for its output where not given otherwise."""
    command: list[Any] = [sys.executable, "-c", code]
    command += [argument if isinstance(argument, bytes) else str(argument) for argument in arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        # Tests that run in the background ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
