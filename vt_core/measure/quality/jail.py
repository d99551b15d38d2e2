"""Runs one untrusted program with everything taken away that it does not need. A script for Linux.

    python -I -B jail.py '{"cpu_s": 10, ...}' KEY_FD RESULT_FD < program

`sandbox` starts it in an empty folder. It imports nothing of this package. In this order:

1. Namespaces, where the system allows them: no view of other processes, network or shared memory, and a file
   system of limited size, in memory, over the folder. Without them the program cannot write files at all.
2. Limits on computing time, memory and files.
3. Landlock: the program reads only Python's own files, and writes only in the folder.
4. seccomp: only the system calls of `CALLS` work. All others fail with EPERM.
5. The program runs. When it has reached its end, the bytes of KEY_FD are copied to RESULT_FD.

The key is the proof that the end was reached. The program and its tests share one process, so a program that
knows this script can still forge it. It cannot do so by writing files or by leaving early.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
import types
from collections.abc import Iterable

#: First byte of the result: the program starts now, or the jail could not be made and the reason follows.
STARTED, REFUSED = b"+", b"!"

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: System calls that programs may make: name, number on x86-64, number on aarch64 (None: does not exist).
#: They reach no other process, and files only as Landlock allows. Without `clone` and `execve` there are no
#: processes or threads, and without `memfd_create` and `shmget` all memory counts against the limit.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "msync": (26, 227), "mincore": (27, 232),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172),
    "sendfile": (40, 71), "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204),
    "getpeername": (52, 205), "getsockopt": (55, 209), "exit": (60, 93), "uname": (63, 160),
    "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45), "ftruncate": (77, 46),
    "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None),
    "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None), "link": (86, None), "unlink": (87, None),
    "symlink": (88, None), "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153),
    "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "getpgrp": (111, None), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "getpgid": (121, 155), "getsid": (124, 156), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "statfs": (137, 43), "fstatfs": (138, 44), "getpriority": (140, 141), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "epoll_create": (213, None), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "exit_group": (231, 94), "epoll_wait": (232, None), "epoll_ctl": (233, 21), "openat": (257, 56),
    "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38),
    "linkat": (265, 37), "symlinkat": (266, 36), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "epoll_pwait": (281, 22),
    "fallocate": (285, 47), "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24),
    "pipe2": (293, 59), "preadv": (295, 69), "pwritev": (296, 70), "getcpu": (309, 168),
    "renameat2": (316, 276), "getrandom": (318, 278), "membarrier": (324, 283),
    "copy_file_range": (326, 285), "preadv2": (327, 286), "pwritev2": (328, 287), "statx": (332, 291),
    "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439), "epoll_pwait2": (441, 441),
}  # fmt: skip
_EVERY_BIT = 0xFFFFFFFF
#: System calls that work only with certain arguments. For each: numbers, and conditions of
#: (32-bit word of the arguments, mask, allowed values).
CONDITIONAL: dict[str, tuple[tuple[int, int], list[tuple[int, int, tuple[int, ...]]]]] = {
    # Not F_SETOWN, F_SETSIG and F_NOTIFY, which send signals.
    "fcntl": ((72, 25), [(2, _EVERY_BIT, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032))]),
    # TCGETS, TIOCGWINSZ, FIOCLEX, FIONCLEX, FIONBIO, FIONREAD.
    "ioctl": ((16, 29), [(2, _EVERY_BIT, (0x5401, 0x5413, 0x5451, 0x5450, 0x5421, 0x541B))]),
    # Of this process only.
    "prlimit64": ((302, 261), [(0, _EVERY_BIT, (0,))]),
    # Connected pairs, as asyncio uses; a datagram socket could send to any address.
    "socketpair": ((53, 199), [(0, _EVERY_BIT, (1,)), (2, 0xF, (1,))]),
    "sendto": ((44, 206), [(8, _EVERY_BIT, (0,)), (9, _EVERY_BIT, (0,))]),
}

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
BPF_LOAD, BPF_AND, BPF_EQUAL, BPF_RETURN = 0x20, 0x54, 0x15, 0x06
SECCOMP_ALLOW, SECCOMP_EPERM, SECCOMP_KILL = 0x7FFF0000, 0x00050001, 0x80000000

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_VERSION = 3  #: Linux 6.2, the first that can forbid to truncate files
LANDLOCK_ALL = (1 << 15) - 1
LANDLOCK_WRITE_FILE, LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1 << 1, 1 << 2, 1 << 3
#: Read and change files and folders, but not execute them or make devices and sockets.
LANDLOCK_FOLDER = LANDLOCK_ALL & ~(1 | 1 << 6 | 1 << 9 | 1 << 11)

CLONE_NEW = {"user": 1 << 28, "mount": 1 << 17, "pid": 1 << 29, "ipc": 1 << 27, "net": 1 << 30}
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
#: Files and folders in the program's file system.
MAX_INODES = 1000

LIBC = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """The system lacks a means that the jail needs."""


def enter_namespaces(folder: str, disk_bytes: int) -> bool:
    """Leave the namespaces of the system, and mount a file system of limited size over `folder`.

    Returns in a child process, the first of its namespace. Returns False if the system does not allow this.
    """
    uid, gid = os.geteuid(), os.getegid()
    others = sum(CLONE_NEW.values()) - CLONE_NEW["user"]
    if LIBC.unshare(CLONE_NEW["user"] | others) == 0:
        try:
            _write_own("setgroups", "deny")
            _write_own("uid_map", f"{uid} {uid} 1")
            _write_own("gid_map", f"{gid} {gid} 1")
        except OSError:
            pass  # then mounting fails
    elif LIBC.unshare(others) != 0:
        return False
    options = f"size={disk_bytes},nr_inodes={MAX_INODES},mode=700".encode()
    private = LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
    mounted = private and LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0
    child = os.fork()
    die_with_parent()  # entering a user namespace cleared it
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(0 if status == 0 else 1)
    os.chdir(folder)
    return mounted


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even if that was killed itself."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write_own(name: str, content: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(content)


def set_limits(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    """Limit computing time, memory and files. Also processes, for users other than root."""
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def drop_privileges() -> None:
    """Drop all capabilities, and never gain any again."""
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Unavailable("PR_SET_NO_NEW_PRIVS (Linux 3.5)")
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if LIBC.capset(header, none) != 0:
        raise Unavailable("capset")


def readable_paths() -> list[str]:
    """Python's own files, the system's libraries, and harmless devices."""
    paths = sysconfig.get_paths()
    libraries = os.path.dirname(paths["stdlib"])
    own = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
              "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom")  # fmt: skip
    return [path for path in (*own, libraries, *system) if os.path.exists(path)]


def restrict_files(folder: str | None) -> None:
    """Use Landlock: read `readable_paths`, write in `folder`, nothing else."""
    version = LIBC.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < LANDLOCK_VERSION:
        found = "none" if version < 0 else f"version {version}"
        raise Unavailable(f"Landlock version {LANDLOCK_VERSION} (Linux 6.2); this kernel has {found}")
    attributes = struct.pack("Q", LANDLOCK_ALL)
    rules = LIBC.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path in readable_paths():
        _allow(rules, path, LANDLOCK_READ_FILE | (LANDLOCK_READ_DIR if os.path.isdir(path) else 0))
    _allow(rules, os.devnull, LANDLOCK_READ_FILE | LANDLOCK_WRITE_FILE)
    if folder is not None:
        _allow(rules, folder, LANDLOCK_FOLDER)
    if rules < 0 or LIBC.syscall(LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0)) != 0:
        raise Unavailable(f"Landlock: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    opened = os.open(path, os.O_PATH)
    if LIBC.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, opened), ctypes.c_uint32(0)) != 0:
        raise Unavailable(f"Landlock: {os.strerror(ctypes.get_errno())} for {path}")
    os.close(opened)


def filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """The instructions of the seccomp filter, each (operation, jump if true, jump if false, operand)."""
    column = list(AUDIT_ARCH).index(machine)
    program = [(BPF_LOAD, 0, 0, 4), (BPF_EQUAL, 1, 0, AUDIT_ARCH[machine]), (BPF_RETURN, 0, 0, SECCOMP_KILL)]
    program.append((BPF_LOAD, 0, 0, 0))
    for numbers in CALLS.values():
        if (number := numbers[column]) is not None:
            program += [(BPF_EQUAL, 0, 1, number), (BPF_RETURN, 0, 0, SECCOMP_ALLOW)]
    for numbers, conditions in CONDITIONAL.values():
        checks: list[tuple[int, int, int, int]] = []
        for word, mask, allowed in conditions:
            # 16 bytes precede the arguments. Jump over the remaining values and the refusal.
            checks += [(BPF_LOAD, 0, 0, 16 + 4 * word), (BPF_AND, 0, 0, mask)]
            checks += [(BPF_EQUAL, len(allowed) - at, 0, value) for at, value in enumerate(allowed)]
            checks.append((BPF_RETURN, 0, 0, SECCOMP_EPERM))
        checks.append((BPF_RETURN, 0, 0, SECCOMP_ALLOW))
        program += [(BPF_EQUAL, 0, len(checks), numbers[column]), *checks]
    return [*program, (BPF_RETURN, 0, 0, SECCOMP_EPERM)]


def restrict_calls() -> None:
    """Use seccomp: allow the system calls of `CALLS` and `CONDITIONAL`, refuse all others."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        known = " and ".join(AUDIT_ARCH)
        raise Unavailable(f"a list of system calls for {machine}; there is one for {known}")
    program = filter_program(machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0) != 0:
        raise Unavailable(f"seccomp filters: {os.strerror(ctypes.get_errno())}")


def close_other_files(kept: Iterable[int]) -> None:
    """Close all descriptors but the standard streams and `kept`."""
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 4096)


def run(source: bytes) -> None:
    """Run a program. Its module is not `__main__`: code that asks for that name is not part of an answer."""
    module = types.ModuleType("vt_program")
    sys.modules[module.__name__] = module
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)


def main() -> None:
    options, key, result = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent()
    source = sys.stdin.buffer.read()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    close_other_files((key, result))
    folder = os.getcwd()
    try:
        limited = options["namespaces"] and enter_namespaces(folder, options["disk_bytes"])
        set_limits(options["cpu_s"], options["memory_bytes"], options["file_bytes"])
        drop_privileges()
        restrict_files(folder if limited else None)
        restrict_calls()
    except Unavailable as reason:
        os.write(result, REFUSED + str(reason).encode())
        return
    # From here on, everything in the result may come from the program.
    os.write(result, STARTED)
    run(source)
    os.write(result, os.read(key, 64))
    os._exit(0)


if __name__ == "__main__":
    main()
