"""Attacks on the sandbox: programs cannot do harm, and pass only by reaching their end."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vt_core.errors import SandboxError
from vt_core.measure.quality import jail, sandbox
from vt_core.measure.quality.sandbox import Limits, check_sandbox, runs_through

QUICK = Limits(cpu_s=1, wall_s=30, memory_bytes=512 << 20, disk_bytes=1 << 20)


def available() -> bool:
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


#: Namespaces need more than the kernel: containers often forbid them. Then programs cannot write files.
HAS_NAMESPACES = available() and runs_through("open('a', 'w').close()", QUICK)

pytestmark = pytest.mark.skipif(not available(), reason="no sandbox here")
needs_namespaces = pytest.mark.skipif(not HAS_NAMESPACES, reason="no namespaces here")
both = pytest.mark.parametrize(
    "namespaces", [pytest.param(True, marks=needs_namespaces), False], ids=["namespaces", "without"]
)


def refused(*statements: str) -> str:
    """A program that reaches its end only if each statement fails with OSError."""
    attempts = (
        f"try:\n    {statement}\nexcept OSError:\n    pass\nelse:\n    raise SystemExit({statement!r})\n"
        for statement in statements
    )
    return f"import ctypes, fcntl, os, resource, signal, socket\n{''.join(attempts)}"


#: Makes a system call by number, as the C library may lack a function for it. Raises OSError.
SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    if libc.syscall(number, *map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), str(number))
"""


@pytest.fixture(autouse=True)
def temporary_folder_stays_empty(tmp_path_factory, monkeypatch):
    """No program leaves anything in the folder of temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert os.listdir(folder) == []


@both
@pytest.mark.parametrize(
    "source",
    [
        "import math, typing, asyncio\nassert math.sqrt(4) == 2",
        "if __name__ == '__main__': raise ValueError",
        "print('\\u65e5' * 10**6)",
        "import asyncio\nassert asyncio.run(asyncio.sleep(0, 3)) == 3",
        "from __future__ import annotations\nimport dataclasses as d\n@d.dataclass\nclass A:\n    x: int",
        "open('/dev/null', 'w').write('x')",
    ],
)
def test_harmless_program_passes(source, namespaces):
    assert runs_through(source, QUICK, namespaces=namespaces)


@needs_namespaces
def test_program_may_write_files_in_its_folder():
    source = "import os\nopen('a', 'w').write('x'); os.rename('a', 'b'); os.mkdir('d'); os.remove('b')"
    assert runs_through(source, QUICK)


@pytest.mark.parametrize(
    "source",
    [
        "assert 1 == 2",
        "def f(:",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); 1 / 0",
        "x = '\ud800'",
        "x = '\0'",
        "(" * 5000,
    ],
)
def test_program_that_does_not_reach_its_end_fails(source):
    assert not runs_through(source, QUICK)


@both
def test_program_cannot_pass_by_making_files_or_writing_to_open_descriptors(namespaces):
    make_files = (
        "import os, re\n"
        "for name in re.findall(r'[0-9a-f]{16}', str(globals()) + str(os.listdir('.'))):\n"
        "    open(name, 'x').close()\n"
    )
    write = "for fd in range(3, 64):\n    try: os.write(fd, b'x' * 33)\n    except OSError: pass\n"
    assert not runs_through(f"import os\n{write}os._exit(0)", QUICK, namespaces=namespaces)
    assert not runs_through(f"{make_files}os._exit(0)", QUICK, namespaces=namespaces)


def test_program_cannot_fake_a_refusal():
    fake = (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'!no')\n    except OSError: pass\n1 / 0"
    )
    assert not runs_through(fake, QUICK)


def test_endless_loop_is_stopped():
    started = time.monotonic()
    assert not runs_through("while True: pass", QUICK)
    assert time.monotonic() - started < QUICK.wall_s


def test_waiting_program_is_stopped():
    started = time.monotonic()
    assert not runs_through("import time; time.sleep(600)", Limits(wall_s=2))
    assert time.monotonic() - started < 30


@both
def test_memory_is_limited(namespaces):
    assert not runs_through("x = [bytearray(1 << 20) for _ in range(1024)]", QUICK, namespaces=namespaces)
    assert runs_through("x = [bytearray(1 << 20) for _ in range(64)]", QUICK, namespaces=namespaces)


@needs_namespaces
def test_disk_is_limited_in_bytes_files_and_nesting():
    assert runs_through("open('a', 'wb').write(bytes(500_000))", QUICK)
    assert runs_through(refused("open('a', 'wb').write(bytes(2_000_000))"), QUICK)
    small = Limits(cpu_s=1, file_bytes=1000)
    assert runs_through(
        refused("open('a', 'wb', 0).write(bytes(1000)) and open('a', 'ab', 0).write(b'x')"), small
    )
    many = "for i in range(100): open(str(i), 'wb').write(bytes(100_000))"
    assert runs_through(refused(f"exec({many!r})"), QUICK)
    nested = "for i in range(5000): os.mkdir('d'); os.chdir('d')"
    assert runs_through(refused(f"exec({nested!r})"), QUICK)


def test_without_namespaces_no_file_can_be_written():
    assert runs_through(refused("open('a', 'w')", "os.mkdir('d')"), QUICK, namespaces=False)


@needs_namespaces
def test_file_names_that_are_not_text_leave_nothing():
    assert runs_through("import os\nos.mkdir(b'\\xff')\nopen(b'\\xff/\\xfe', 'w').close()\nos.chmod", QUICK)


@both
def test_files_outside_the_folder_cannot_be_read_or_written(tmp_path, namespaces):
    kept = tmp_path / "kept"
    kept.write_text("here")
    path = str(kept)
    source = refused(
        f"open({path!r})",
        f"os.listdir({str(tmp_path)!r})",
        "os.listdir(os.path.expanduser('~root'))",
        "os.listdir('/')",
        "open('/proc/self/environ')",
        "os.listdir('/dev/shm')",
        f"open({path!r}, 'w')",
        f"open({path + 'x'!r}, 'x')",
        f"os.remove({path!r})",
        f"os.truncate({path!r}, 0)",
        f"os.rename({path!r}, 'mine')",
        f"os.symlink('a', {path + 'link'!r})",
        f"os.mkdir({path + 'folder'!r})",
        f"os.chmod({path!r}, 0o777)",
        f"os.chown({path!r}, 1, 1)",
        f"os.utime({path!r})",
        f"os.setxattr({path!r}, 'user.a', b'b')",
    )
    assert runs_through(source, QUICK, namespaces=namespaces)
    assert kept.read_text() == "here" and os.listdir(tmp_path) == ["kept"]


@both
def test_no_process_or_thread_can_be_started(namespaces):
    source = refused(
        "os.fork()", "os.execv('/bin/true', ['true'])", "os.posix_spawn('/bin/true', ['true'], {})"
    )
    source += "import threading\ntry: threading.Thread(target=print).start()\n"
    source += "except RuntimeError: pass\nelse: 1 / 0"
    assert runs_through(source, QUICK, namespaces=namespaces)
    assert not runs_through("import os\nwhile True: os.fork()", QUICK, namespaces=namespaces)


@both
def test_other_processes_cannot_be_signaled_limited_or_read(namespaces):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        pid = victim.pid
        source = refused(
            f"os.kill({pid}, 9)",
            "os.kill(os.getppid(), 0)",
            "os.killpg(0, 9)",
            f"resource.prlimit({pid}, resource.RLIMIT_CPU, (0, 0))",
            f"resource.prlimit({pid}, resource.RLIMIT_CPU)",
            f"os.sched_setaffinity({pid}, {{0}})",
            f"os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
            f"os.pidfd_open({pid})",
            "os.setuid(1)",
        )
        # A pipe whose owner gets SIGKILL when it can be read.
        source += SYSCALL + refused(
            f"fcntl.fcntl(0, 8, {pid})",
            "fcntl.fcntl(0, 10, 9)",
            "fcntl.fcntl(0, 15, bytes(8))",
            "fcntl.ioctl(0, 0x8901, bytes(4))",
            f"syscall({101 if platform.machine() == 'x86_64' else 117}, 16, {pid}, 0, 0)",
        )
        assert runs_through(source, QUICK, namespaces=namespaces)
        time.sleep(0.1)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@both
def test_no_shared_memory_or_queue_is_left_behind(namespaces):
    before = Path("/proc/sysvipc/shm").read_text(), sorted(os.listdir("/dev/shm"))
    shmget, semget, msgget, memfd = (
        (29, 64, 68, 319) if platform.machine() == "x86_64" else (194, 190, 186, 279)
    )
    source = SYSCALL + refused(
        f"syscall({shmget}, 4711, 1 << 20, 0o1600)",
        f"syscall({semget}, 4711, 1, 0o1600)",
        f"syscall({msgget}, 4711, 0o1600)",
        f"syscall({memfd}, id('name'), 0)",
        "__import__('multiprocessing.shared_memory').shared_memory.SharedMemory('vt-left', True, 1 << 20)",
    )
    assert runs_through(source, QUICK, namespaces=namespaces)
    assert (Path("/proc/sysvipc/shm").read_text(), sorted(os.listdir("/dev/shm"))) == before


@both
def test_network_and_sockets_of_other_processes_cannot_be_reached(namespaces):
    source = refused(
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair(type=socket.SOCK_DGRAM)",
        "socket.socketpair()[0].sendto(b'x', '/dev/log')",
    )
    assert runs_through(source, QUICK, namespaces=namespaces)


@both
def test_program_ends_when_its_evaluator_is_killed(namespaces):
    code = (
        "from vt_core.measure.quality.sandbox import runs_through\n"
        f"runs_through('import time; time.sleep(60)', namespaces={namespaces})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    evaluator = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        assert wait_until(lambda: len(descendants(evaluator.pid)) == 1 + namespaces)
        # The jail reads the program before it is confined, so its processes are all there now.
        started = descendants(evaluator.pid)
    finally:
        evaluator.kill()
        evaluator.wait()
    assert wait_until(lambda: not any(map(is_running, started)))


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def descendants(pid):
    """Process ids of the children of a process, and of their children."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return children + [child for child, parent in parents.items() if parent in children]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_environment_and_input_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("VT_SECRET", "1")
    assert runs_through(
        "import os, sys\nassert 'VT_SECRET' not in os.environ and not sys.stdin.read()", QUICK
    )


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("LANDLOCK_VERSION = 99", r"Landlock version 99 .*this kernel has version"),
        ("AUDIT_ARCH.clear()", "a list of system calls for"),
    ],
)
def test_missing_protection_refuses_before_the_program_runs(tmp_path, monkeypatch, change, missing):
    script = tmp_path / "jail.py"
    script.write_text(
        Path(jail.__file__).read_text().replace("\nclass Unavailable", f"\n{change}\n\nclass Unavailable")
    )
    monkeypatch.setattr(sandbox, "_JAIL", script)
    with pytest.raises(SandboxError, match=f"cannot be run safely on this machine: it lacks {missing}"):
        check_sandbox()


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="only on Linux"):
        check_sandbox()
