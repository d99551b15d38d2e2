"""What reading the full head takes on a CPU, by float type and number of positions, for docs/how-it-works.md.

    python -m benchmarks.scans --model PLAIN_DIR

A scan multiplies all rows with the hidden states of a block and finds the largest logits, as a check does.
``read`` only adds up the bytes of the table, which is the least that a scan can take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch

from converters.cache import open_model
from vt_core.decode.blocks import Draft
from vt_core.decode.search import GreedySearch
from vt_core.files.tables import open_tables
from vt_core.measure.machine import machine, machine_text
from vt_torch.integer_scan import IntegerScan
from vt_torch.integers import choose_sums
from vt_torch.products import kernels_of
from vt_torch.rows import TorchRows
from vt_torch.verification import HeadScan

FORMATS = ("float32", "bfloat16", "int8")
POSITIONS = (1, 2, 4, 8, 16, 32)
CPU = torch.device("cpu")


@click.command()
@click.option("--model", help="As for generate. Default: SmolLM2-135M.")
@click.option("--format", "formats", type=click.Choice(FORMATS), multiple=True, default=FORMATS)
@click.option("--rounds", type=int, default=7, show_default=True, help="Of them the fastest counts.")
def main(model: str | None, formats: tuple[str, ...], rounds: int) -> None:
    """Print a Markdown table, in milliseconds."""
    click.echo(machine_text(machine()) + f"; {torch.get_num_threads()} threads\n")
    click.echo("| | MB | read | " + " | ".join(str(count) for count in POSITIONS) + " |")
    click.echo("|---|---:|" + "---:|" * (1 + len(POSITIONS)))
    for form in formats:
        scan, table = open_scan(model, form)
        with torch.inference_mode():
            times = [fastest(lambda table=table: read(table), rounds)]
            for count in POSITIONS:
                hidden = torch.randn(count, table.spec.columns).to(scan_dtype(form))
                times.append(fastest(lambda scan=scan, hidden=hidden: check(scan, hidden), rounds))
        size = table.spec.rows * table.spec.stride / 1e6
        click.echo(f"| {form} | {size:.0f} | " + " | ".join(f"{1000 * value:.0f}" for value in times) + " |")


def open_scan(model: str | None, form: str) -> tuple[HeadScan, Any]:
    """The head of a model in a format, and its table."""
    directory = open_model(model, quantize="int8" if form == "int8" else None)
    manifest, dtype = directory.manifest, scan_dtype(form)
    rows = TorchRows(open_tables(directory, "lmdb"), manifest.tied, CPU, dtype)
    if rows.quantized:
        choose_sums(manifest.hidden)
    else:
        kernels_of(rows.head_table.spec, dtype)
    kind = IntegerScan if rows.quantized else HeadScan
    return kind(rows, manifest.vocab_rows, None, CPU, dtype), rows.head_table


def scan_dtype(form: str) -> torch.dtype:
    """Float type of a run in a format."""
    return torch.float32 if form == "float32" else torch.bfloat16


def check(scan: HeadScan, hidden: torch.Tensor) -> None:
    """Find the largest logits of each position."""
    search = GreedySearch(scan.rounding, [Draft(at, ()) for at in range(len(hidden))])
    for tile in scan.tiles(hidden):
        search.add(tile)
    search.finish()


def read(table: Any) -> None:
    """Read every byte of a table."""
    for tile in table.tiles(4 << 20):
        np.ascontiguousarray(tile.rows).reshape(-1).view(np.uint64).sum()


def fastest(run: Callable[[], None], rounds: int) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
