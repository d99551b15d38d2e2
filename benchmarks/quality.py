"""Quality of the original head, static pruning, approximate and exact decoding: five tasks in one report.

    python -m benchmarks.quality --backend torch --model MODEL_DIR --data DATA_DIR --out DIR

runs the command `eval` for each task, in the directory DIR/TASK, with the corpus that the task is profiled
from, and one report of all. Run again, it goes on where it was stopped, or takes more rows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from benchmarks.exact import CORPORA
from benchmarks.generation import TASKS
from vt_core.decode.backend import BACKENDS
from vt_core.measure.evaluation.report import REPORT, RESULTS, load, report

OPTIONS = {"translation": ("--template", "Translate into Italian: {input}")}


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Default: all.")
@click.option("--rows", default=20, show_default=True, help="Evaluation rows of each task.")
@click.option("--max-tokens", default=128, show_default=True)
@click.option("--variants", default="original,pruned,approximate,exact", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    data: Path,
    tasks: tuple[str, ...],
    rows: int,
    max_tokens: int,
    variants: str,
    out: Path,
) -> None:
    names = tasks or tuple(TASKS)
    for task in names:
        arguments = {
            "--model": model,
            "--preset": task,
            "--data": data / TASKS[task][0],
            "--profile-data": data / CORPORA[task],
            "--limit": rows,
            "--max-tokens": max_tokens,
            "--variants": variants,
            "--out": out / task,
        }
        listed = [str(part) for pair in arguments.items() for part in pair]
        command = f"from vt_core.cli import {backend}; {backend}()"
        done = [sys.executable, "-c", command, "eval", *listed, *OPTIONS.get(task, ())]
        subprocess.run(done, check=True, stdout=subprocess.DEVNULL)
    text = summary(out)
    (out / REPORT).write_text(text, encoding="utf-8")
    click.echo(text)


def summary(out: Path) -> str:
    """One report of all tasks whose results lie in a directory, in the tasks' order."""
    return report([load(file) for task in TASKS if (file := out / task / RESULTS).is_file()])


if __name__ == "__main__":
    main()
