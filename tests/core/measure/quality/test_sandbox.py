"""Programs that a model might write do no harm."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import pytest

from vt_core.measure.quality.sandbox import Limits, protections, runs_through

QUICK = Limits(cpu_s=1, wall_s=30, memory_bytes=512 << 20)


def needs(protection: str):
    return pytest.mark.skipif(protection not in protections(), reason=f"no {protection} protected here")


def refused(statement: str) -> str:
    """A program that comes to its end only where a statement fails with OSError."""
    return (
        f"import os, socket\ntry:\n    {statement}\nexcept OSError:\n    pass\nelse:\n    raise SystemExit(1)"
    )


def test_a_program_runs_through_only_when_its_last_line_is_reached():
    assert runs_through("import math, typing\nassert math.sqrt(4) == 2\nopen('own', 'w').write('x')", QUICK)
    for wrong in ("assert 1 == 2", "def f(:", "raise SystemExit(0)", "import os; os._exit(0)"):
        assert not runs_through(wrong, QUICK)
    assert runs_through("if __name__ == '__main__': raise ValueError", QUICK)
    assert runs_through("print('\\u65e5' * 10**6)", QUICK)


def test_an_endless_loop_is_stopped():
    started = time.monotonic()
    assert not runs_through("while True: pass", QUICK)
    assert time.monotonic() - started < QUICK.wall_s


def test_a_program_that_only_waits_is_stopped():
    started = time.monotonic()
    assert not runs_through("import time; time.sleep(600)", Limits(wall_s=2))
    assert time.monotonic() - started < 60


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory here")
def test_a_memory_hog_is_stopped():
    assert not runs_through("hoard = [bytearray(1 << 20) for _ in range(1024)]", QUICK)
    # It is the limit that stops it.
    assert runs_through("hoard = [bytearray(1 << 20) for _ in range(64)]", QUICK)


def test_large_files_are_stopped():
    assert not runs_through("open('big', 'wb').write(bytes(20 << 20))", QUICK)
    assert runs_through("open('big', 'wb').write(bytes(2 << 20))", QUICK)


@needs("processes")
def test_a_fork_bomb_makes_no_process():
    assert not runs_through("import os\nwhile True: os.fork()", QUICK)
    assert runs_through(refused("os.fork()"), QUICK)
    assert runs_through(refused("import subprocess; subprocess.run(['true'])"), QUICK)


@needs("processes")
def test_other_processes_are_out_of_reach():
    assert runs_through(refused("os.kill(os.getppid(), 0)"), QUICK)
    assert runs_through(refused("os.setuid(12345)") if os.getuid() else refused("os.setuid(1)"), QUICK)


@needs("files")
def test_nothing_outside_of_the_folder_can_be_written(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("here")
    path = str(kept)
    for statement in (
        f"open({path!r}, 'w')",
        f"open({path + 'x'!r}, 'x')",
        f"os.remove({path!r})",
        f"os.truncate({path!r}, 0)",
        f"os.rename({path!r}, 'mine')",
        f"os.symlink('a', {path + 'link'!r})",
        f"os.mkdir({path + 'folder'!r})",
    ):
        assert runs_through(refused(statement), QUICK), statement
    assert kept.read_text() == "here" and os.listdir(tmp_path) == ["kept"]
    inside = "import os\nopen('a', 'w').close(); os.rename('a', 'b'); os.mkdir('d'); os.remove('b')"
    assert runs_through(inside + "\nopen('/dev/null', 'w').write('x')", QUICK)


@needs("network")
def test_there_is_no_network_and_no_change_of_permissions(tmp_path):
    assert runs_through(refused("socket.socket()"), QUICK)
    assert runs_through(refused("socket.socket(socket.AF_UNIX)"), QUICK)
    assert runs_through(refused(f"os.chmod({str(tmp_path)!r}, 0o777)"), QUICK)


def test_the_environment_and_input_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("VT_SECRET", "1")
    assert runs_through(
        "import os, sys\nassert 'VT_SECRET' not in os.environ\nassert not sys.stdin.read()", QUICK
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_everything_that_the_kernel_offers_is_used():
    landlock = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    assert ("files" in protections()) == (landlock >= 3)
    if os.uname().machine in ("x86_64", "aarch64"):
        assert {"network", "processes"} <= set(protections())
