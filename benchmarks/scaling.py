"""Rows per second of `profile` with each engine, on one machine.

    python -m benchmarks.scaling --model MODEL --data FILE --data FILE --rows 1000000

Repeats the rows of the given JSON lines, with a number added to each, until there are `--rows` of them in a
temporary file. Each engine counts it, and a file of 1,000 rows whose time is nearly all overhead: starting
processes, the tokenizer, the JVM or Ray. Checks that all counts files are the same, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
        print("| engine | seconds | overhead | rows/s after it | same counts |\n|---|---:|---:|---:|---|")
        first: bytes | None = None
        for engine in arguments.engine or ENGINES:
            counts = Path(scratch) / "counts"
            few, many = (seconds(engine, arguments.model, file, counts) for file in files)
            first = first or counts.read_bytes()
            rate = (arguments.rows - FEW) / (many - few)
            same = counts.read_bytes() == first
            print(f"| {engine} | {many:.0f} | {few:.0f} | {rate:,.0f} | {same} |", flush=True)


def seconds(engine: str, model: str, file: Path, counts: Path) -> float:
    """Time that counting a file takes, with everything that it starts."""
    command = [sys.executable, "-c", "from vt_core.cli import torch; torch()", "profile"]
    command += ["--model", model, "--data", file, "--save-counts", counts, "--out", os.devnull]
    # Ray takes its cores from the environment only where it starts itself.
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    subprocess.run([*command, *ENGINES[engine]], check=True, env=environment, capture_output=True)
    return time.perf_counter() - start


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
