"""The machine, the package versions and the command line of a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vt_core.host import usable_cores

#: Environment variables that affect the figures.
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD")
PACKAGES = ("transformers", "torch", "mlx", "mlx-lm", "numpy", "lmdb")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, system, and load average of the last
    minute.
    """
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": physical_memory(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }


def machine_text(machine: dict[str, Any]) -> str:
    """Describe the result of :func:`machine` in a few words."""
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    return f"{machine['processor']}, {cores_text(machine)}, {memory}, {machine['system']}"


def cores_text(machine: dict[str, Any]) -> str:
    """Number of cores, in words."""
    return "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"


def physical_memory() -> int:
    """Memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions(backend: str, more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of vt (with the commit in a git clone), of Python, and of the packages that it runs on.

    Args:
        backend: packages of the other backend are left out.
        more: further packages to look up.
    """
    from vt_core import __version__

    found = {"vt": __version__, "python": platform.python_version()}
    other = {"torch"} if backend == "mlx" else {"mlx", "mlx-lm"}
    for package in (*PACKAGES, *more):
        if package not in other:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    commit = _commit(Path(__file__).parents[2])
    return found | ({"commit": commit} if commit else {})


def command_text(program: str, arguments: Sequence[str]) -> str:
    """The command line, preceded by the environment variables that affect the figures.

    Of paths outside the working directory only the file name is kept: the rest means nothing elsewhere.
    """
    settings = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return " ".join(_quoted(_short(part)) for part in (*settings, program, *arguments))


def _quoted(argument: str) -> str:
    """Quote for a shell, on one line."""
    if "\n" not in argument:
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"


def _short(argument: str) -> str:
    name, _, value = argument.partition("=")  # --data=FILE, or NAME=FILE
    if value and re.fullmatch(r"[\w.+@-]+", name):
        return f"{name}={_short(value)}"
    path = Path(argument)
    if not (path.is_absolute() or argument.startswith(("..", "~"))):
        return argument
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return path.name


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        done = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def _commit(directory: Path) -> str | None:
    if not (directory / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None
