"""Shuts this process in, and runs a program there. A script, started by `sandbox` in the program's folder:

    python -I -B shut_in.py CPU_SECONDS MEMORY_BYTES FILE_BYTES [PROGRAM]

Limits hold everywhere. On Linux the process also gives up, for good and without being root: writing outside
of the folder (Landlock), and processes or threads of its own, sockets, signals to others, and changes of
permissions (seccomp). Without PROGRAM it prints what of this the system can do. It imports nothing of the
package.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

#: System calls that a program does without, by machine: all that reach beyond the folder and are no write.
DENIED: dict[str, dict[str, Any]] = {
    "x86_64": {
        "arch": 0xC000003E,
        "processes": (56, 57, 58, 435),  # clone fork vfork clone3
        "network": (41, 425),  # socket io_uring_setup
        # kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal ptrace process_vm_writev
        "others": (62, 200, 234, 129, 297, 424, 101, 311),
        "namespaces": (272, 308),  # unshare setns
        # chmod fchmod fchmodat fchmodat2, chown fchown lchown fchownat, utime utimes futimesat utimensat,
        # setxattr and removexattr with their kin
        "permissions": (
            *(90, 91, 268, 452, 92, 93, 94, 260),
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
        ),
    },
    "aarch64": {
        "arch": 0xC00000B7,
        "processes": (220, 435),
        "network": (198, 425),
        "others": (129, 130, 131, 138, 240, 424, 117, 271),
        "namespaces": (97, 268),
        "permissions": (52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16),
    },
}
X32_CALLS = 0x40000000  #: x86-64's second numbering of the same calls

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_FILTER = 24, 38, 22, 2
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  #: refused calls fail with EPERM

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
#: Rights to change files, by the version that brought them: write, remove and make of every kind; rename
#: across folders; truncate.
LANDLOCK_RIGHTS = {1: 0b1_1111_1111_0010, 2: 1 << 13, 3: 1 << 14}
LANDLOCK_WRITE = 0b10


def limit(cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    """Limits on computing, memory, files, and processes (which hold for nobody who is root)."""
    for name, soft in (
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_FSIZE", file_bytes),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        _, hard = resource.getrlimit(getattr(resource, name))
        value = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError):
            # macOS takes no limit on addresses.
            if name != "RLIMIT_AS":
                raise


def confine(folder: str) -> list[str]:
    """Gives up what the system lets a process give up; returns what that is."""
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):  # of root: what follows, and starting the program anew, leaves none
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    return keep_to_folder(libc, folder) + refuse_calls(libc)


def keep_to_folder(libc: ctypes.CDLL, folder: str) -> list[str]:
    """Forbids changes of files outside of a folder."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < max(LANDLOCK_RIGHTS):
        return []
    rights = sum(LANDLOCK_RIGHTS.values())
    attributes = struct.pack("Q", rights)
    rules = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path, allowed in ((folder, rights), (os.devnull, LANDLOCK_WRITE)):
        opened = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", allowed, opened)
        if libc.syscall(LANDLOCK_ADD, rules, 1, rule, ctypes.c_uint32(0)) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
        os.close(opened)
    if libc.syscall(LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0)) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(rules)
    return ["files"]


def refuse_calls(libc: ctypes.CDLL) -> list[str]:
    """Has the kernel refuse the system calls of `DENIED`."""
    calls = DENIED.get(platform.machine())
    if calls is None:
        return []
    numbers = [number for kind, listed in calls.items() if kind != "arch" for number in listed]
    refused = len(numbers) + 1
    program = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, calls["arch"]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program.append((IF_AT_LEAST, refused, 0, X32_CALLS))
    program += [(IF_EQUAL, refused - 1 - at, 0, number) for at, number in enumerate(numbers)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_FILTER, head, 0, 0) != 0:
        return []
    return ["network", "processes"]


def main() -> None:
    cpu_s, memory_bytes, file_bytes, *program = sys.argv[1:]
    limit(int(cpu_s), int(memory_bytes), int(file_bytes))
    protections = confine(os.getcwd())
    if not program:
        print(json.dumps(protections))
        return
    # A name other than __main__: what stands behind `if __name__ == "__main__"` is no part of the answer.
    run = f"import runpy; runpy.run_path({program[0]!r}, run_name='vt_program')"
    os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", run])


if __name__ == "__main__":
    main()
