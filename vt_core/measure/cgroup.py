"""Linux memory control groups: run a process in limited memory, page cache included."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vt_core.errors import OptionError

_ROOT = Path("/sys/fs/cgroup")
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class ControlGroup:
    """A memory control group, version 1 or 2."""

    path: Path
    #: Name of the file that lists the members.
    members: str
    #: Name of the file that holds the peak.
    peak_file: str

    def enter(self) -> None:
        """Move the calling process into the group."""
        (self.path / self.members).write_text(str(os.getpid()))

    def peak(self) -> int:
        """Peak of the bytes charged to the group."""
        return int((self.path / self.peak_file).read_text())


@contextmanager
def control_group(limit: int | None) -> Iterator[ControlGroup]:
    """Make a control group and remove it at the end.

    Args:
        limit: memory limit in bytes, without swap; None for no limit.

    Raises:
        OptionError: the system has no control groups, or does not allow making one.
    """
    version_2 = (_ROOT / "cgroup.controllers").exists()
    path = (_ROOT if version_2 else _ROOT / "memory") / f"vt-bench-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        raise OptionError(
            f"--memory-limit-search needs memory control groups, and {path} cannot be made "
            f"({error.strerror}); run it on Linux as root, or leave it out"
        ) from error
    try:
        if limit is not None:
            (path / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit))
        no_swap = path / ("memory.swap.max" if version_2 else "memory.swappiness")
        if no_swap.exists():  # kernels without swap lack it
            no_swap.write_text("0")
        if version_2:
            yield ControlGroup(path, "cgroup.procs", "memory.peak")
        else:
            yield ControlGroup(path, "tasks", "memory.max_usage_in_bytes")
    finally:
        _remove(path)


def check() -> None:
    """Raise OptionError where groups cannot be made or the page cache cannot be emptied."""
    with control_group(None):
        if not os.access(_DROP_CACHES, os.W_OK):
            raise OptionError(
                f"--memory-limit-search must empty the page cache, and {_DROP_CACHES} cannot be written "
                "here; run it as root, or leave it out"
            )


def drop_caches() -> None:
    """Empty the page cache, whose pages are charged to the process that read them first."""
    os.sync()
    _DROP_CACHES.write_text("1")


def _remove(path: Path) -> None:
    """Remove a group; the kernel refuses for a moment after its last process ended."""
    for _ in range(50):
        try:
            path.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    path.rmdir()
