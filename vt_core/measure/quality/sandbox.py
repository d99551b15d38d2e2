"""Runs programs that a model wrote, each in a process of its own that can do no harm."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

from vt_core.errors import SandboxError
from vt_core.measure.quality.code import program_of
from vt_core.measure.quality.examples import Example

_JAIL = Path(__file__).with_name("jail.py")
#: First byte of the jail's answer: the program has started, or the jail could not be made and the reason
#: follows.
_STARTED, _REFUSED = b"+", b"!"
#: What the sandbox keeps a program from, for reports.
PROTECTIONS = ("files", "network", "processes")


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    #: Seconds of computing.
    cpu_s: int = 10
    #: Seconds until the program is stopped. More than `cpu_s`, as the machine may be busy.
    wall_s: float = 60.0
    memory_bytes: int = 1 << 30
    #: Bytes of one file.
    file_bytes: int = 1 << 24
    #: Bytes of all files, which are kept in memory.
    disk_bytes: int = 1 << 26


def runs_through(source: str, limits: Limits = Limits(), *, namespaces: bool = True) -> bool:
    """Whether a program reaches its end without an error, within the limits.

    It runs in an empty folder, without this process's environment, input and output. It cannot reach other
    processes, the network, or files other than Python's own.

    Args:
        source: a Python program.
        limits: what it may use.
        namespaces: whether to use the system's namespaces if it has them. Without them, programs cannot write
            files.

    Raises:
        SandboxError: this machine cannot run programs safely. Nothing has been run.
    """
    try:
        program = source.encode()
    except UnicodeEncodeError:  # lone surrogates: not a program
        return False
    key = secrets.token_bytes(32)
    answer = _run_jailed(program, key, limits, namespaces)
    if answer.startswith(_REFUSED):
        reason = answer[1:].decode(errors="replace")
        raise SandboxError(
            f"Generated programs cannot be run safely on this machine: it lacks {reason}. "
            "Evaluate without unit tests, or on another machine."
        )
    return answer == _STARTED + key


def check_sandbox() -> None:
    """Raise SandboxError if this machine cannot run programs safely."""
    if sys.platform != "linux":
        raise SandboxError(
            "Generated programs are run only on Linux, whose Landlock and seccomp keep them from doing harm; "
            "evaluate without unit tests, or on Linux."
        )
    if not runs_through(""):
        raise SandboxError("The sandbox cannot run an empty program on this machine; is /tmp writable?")


def passes(answer: str, example: Example) -> float:
    """1 if an answer passes the tests of its example, else 0."""
    return float(runs_through(program_of(answer, example)))


def _run_jailed(program: bytes, key: bytes, limits: Limits, namespaces: bool) -> bytes:
    """What the jail wrote as its result, after all its processes have ended."""
    key_out, key_in = os.pipe()
    result_out, result_in = os.pipe()
    # The jail mounts its own file system over it, so that nothing is ever written into this folder.
    folder = mkdtemp(prefix="vt-program-")
    try:
        os.write(key_in, key)
        options = json.dumps({**asdict(limits), "namespaces": namespaces})
        process = subprocess.Popen(
            # -I: no user site, no environment, no imports from the folder. -B: no byte code is written.
            [sys.executable, "-I", "-B", str(_JAIL), options, str(key_out), str(result_in)],
            cwd=folder,
            # Libraries that start threads would fail.
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(key_out, result_in),
            start_new_session=True,
        )
        _wait(process, program, limits.wall_s)
        os.set_blocking(result_out, False)
        with suppress(BlockingIOError):
            return os.read(result_out, 4096)
        return b""
    finally:
        for descriptor in (key_out, key_in, result_out, result_in):
            os.close(descriptor)
        os.rmdir(folder)


def _wait(process: subprocess.Popen[bytes], program: bytes, seconds: float) -> None:
    """Give a process its input and wait for it, at most some seconds. Then kill its whole group."""
    try:
        process.communicate(program, timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
