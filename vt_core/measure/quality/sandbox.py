"""Runs code that a model wrote: in a process of its own, shut in, with limits on all that it can take."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vt_core.measure.quality.code import program_of
from vt_core.measure.quality.examples import Example

SCRIPT = Path(__file__).with_name("shut_in.py")


@dataclass(frozen=True)
class Limits:
    """What a program may take."""

    cpu_s: int = 10
    """Seconds of computing."""
    wall_s: float = 60.0
    """Seconds in all: a program may sleep, and the machine may be busy."""
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24


def runs_through(source: str, limits: Limits = Limits()) -> bool:
    """Whether a program comes to its end without an error, within the limits.

    It runs in an empty folder that is gone afterwards, without this process' environment, input and output.
    Leaving early is no end: only the last line makes the file that is looked for.
    """
    with TemporaryDirectory(prefix="vt-program-") as folder:
        end = secrets.token_hex(8)
        (Path(folder) / "program.py").write_text(f"{source}\nopen({end!r}, 'x').close()\n", encoding="utf-8")
        process = subprocess.Popen(
            [*_command(limits), "program.py"],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # The group too: where processes cannot be forbidden, one may have been left behind.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return code == 0 and (Path(folder) / end).exists()


@cache
def protections() -> tuple[str, ...]:
    """What this system can keep a program from, of "files", "network" and "processes"; limits always hold."""
    with TemporaryDirectory(prefix="vt-program-") as folder:
        done = subprocess.run(_command(Limits()), cwd=folder, env={}, capture_output=True, check=True)
    return tuple(json.loads(done.stdout))


def _command(limits: Limits) -> list[str]:
    numbers = (limits.cpu_s, limits.memory_bytes, limits.file_bytes)
    # -I: nothing of the user's, no environment, no folder to import from. -B: writes no byte code.
    return [sys.executable, "-I", "-B", str(SCRIPT), *map(str, numbers)]


def passes(answer: str, example: Example) -> float:
    """1 where an answer passes its example's tests."""
    return float(runs_through(program_of(answer, example)))
