"""Rows per second of `profile` with each engine, on one machine.

    python -m benchmarks.scaling --model MODEL --data FILE --data FILE --rows 1000000

Repeats the rows of the given JSON lines, with a number added to each, until there are `--rows` of them in a
temporary file. Each engine counts it, and a file of 1,000 rows, whose time is nearly all overhead: processes,
the tokenizer, the JVM or Ray. Checks that all counts files are the same, and prints a table. CPU seconds are
those of all processes that an engine starts, and need Linux and root; on a busy machine they tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

ENGINES = {
    "local, 1 process": ("--processes", "1"),
    "local, 2 processes": ("--processes", "2"),
    "Spark, local[2]": ("--engine", "spark", "--master", "local[2]"),
    "Ray, 2 CPUs": ("--engine", "ray"),
}

FEW = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{count}" / "rows.jsonl" for count in (FEW, arguments.rows)]
        for file, count in zip(files, (FEW, arguments.rows), strict=True):
            file.parent.mkdir()
            write_rows(file, arguments.data, count)
        print(
            f"{arguments.rows:,} rows, {files[1].stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}"
        )
        head = (
            "engine",
            "seconds",
            "overhead",
            "rows/s after it",
            "CPU seconds",
            "rows per CPU second",
            "same counts",
        )
        print(f"| {' | '.join(head)} |\n|---|---:|---:|---:|---:|---:|---|")
        first: bytes | None = None
        for engine in arguments.engine or ENGINES:
            counts = Path(scratch) / "counts"
            (few, few_cpu), (many, many_cpu) = (
                seconds(engine, arguments.model, file, counts) for file in files
            )
            first = first or counts.read_bytes()
            rows = arguments.rows - FEW
            cells = [f"{many:.0f}", f"{few:.0f}", f"{rows / (many - few):,.0f}", f"{many_cpu:.0f}"]
            cells += [f"{rows / (many_cpu - few_cpu):,.0f}", "yes" if counts.read_bytes() == first else "no"]
            print(f"| {engine} | {' | '.join(cells)} |", flush=True)


def seconds(engine: str, model: str, file: Path, counts: Path) -> tuple[float, float]:
    """Time that counting a file takes, with everything that it starts, and time of the processor."""
    command = [sys.executable, "-c", "from vt_core.cli import torch; torch()", "profile"]
    command += ["--model", model, "--data", str(file), "--save-counts", str(counts), "--out", os.devnull]
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "TOKENIZERS_PARALLELISM": "false"}
    with processor_group() as (join, used):
        start = time.perf_counter()
        subprocess.run(
            [*command, *ENGINES[engine]], check=True, env=environment, capture_output=True, preexec_fn=join
        )
        return time.perf_counter() - start, used()


@contextmanager
def processor_group() -> Iterator[tuple[Callable[[], object], Callable[[], float]]]:
    """What puts a process into a control group, and seconds that the processor has worked for the group."""
    root = Path("/sys/fs/cgroup")
    version_2 = (root / "cgroup.controllers").exists()
    path = (root if version_2 else root / "cpuacct") / f"vt-scaling-{os.getpid()}"
    path.mkdir()

    def used() -> float:
        if version_2:
            return int((path / "cpu.stat").read_text().split()[1]) / 1e6
        return int((path / "cpuacct.usage").read_text()) / 1e9

    try:
        yield lambda: (path / "cgroup.procs").write_text(str(os.getpid())), used
    finally:
        while (path / "cgroup.procs").read_text():  # Ray's processes take a moment to end
            time.sleep(0.1)
        path.rmdir()


def write_rows(file: Path, sources: Sequence[Path], count: int) -> None:
    """Write `count` rows to a file."""
    with file.open("w", encoding="utf-8") as out:
        for number, row in enumerate(islice(cycle(_rows(sources)), count)):
            varied = {"input": f"{row['input']} {number}", "output": f"{row['output']} {number % 9973}"}
            out.write(json.dumps(varied, ensure_ascii=False) + "\n")


def _rows(sources: Sequence[Path]) -> Iterator[dict[str, str]]:
    for source in sources:
        with source.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
