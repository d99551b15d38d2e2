"""Rewrite the reports of the committed results, and the README's table and picture, from these results.

    python -m benchmarks.readme

writes ``report.md`` beside each ``benchmarks/results/NAME/results.json`` and in each
``benchmarks/results/quality/NAME``, and the README between its two marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vt_core.measure.bench_report import bench_report
from vt_core.measure.eval_report import eval_report
from vt_core.measure.figures import Figures, Row
from vt_core.measure.machine import machine_text
from vt_core.measure.output import REPORT, RESULTS, load_bench, load_eval
from vt_core.measure.plots import draw
from vt_core.measure.report import NONE, markdown

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- bench: python -m benchmarks.readme -->\n", "<!-- /bench -->\n"
_EXPLANATION = (
    "Memory (peak of the process) and tokens/s are vt's divided by the stock framework's: below 1 × is less "
    "memory, above 1 × is faster. "
)
STOCK_NAMES = {"torch": "transformers", "mlx": "mlx-lm"}
#: Names of the models, by model directory.
TITLES = {"gemma-vt": "Gemma 3 270M", "qwen-vt": "Qwen2.5-Coder 0.5B", "smollm2-vt": "SmolLM2 135M"}
#: Tasks in the order of the quality reports.
TASKS = ("math", "qa", "summarization", "code", "translation")


@click.command()
def main() -> None:
    for file in files():
        file.with_name(REPORT).write_text(markdown(bench_report(load_bench(file))), encoding="utf-8")
    for directory in evaluated():
        (directory / REPORT).write_text(summary(directory), encoding="utf-8")
    if (name := pictured()) is not None:
        memory = next(each for each in draw(load_bench(FOLDER / name / RESULTS)) if each.name == "memory")
        (FOLDER / name / "memory.png").write_bytes(memory.light)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), section()), encoding="utf-8")


def section() -> str:
    """The text between the marks: a table and a picture."""
    text = table([load_bench(file) for file in files()])
    if (name := pictured()) is None:
        return text
    title = _title(load_bench(FOLDER / name / RESULTS))
    path = (FOLDER / name / "memory.png").relative_to(ROOT)
    return f"{text}\n![Peak memory of {title} by component]({path})\n"


def pictured() -> str | None:
    """Name of the results to draw: of the real model whose tables are the largest share of its weights."""
    found = {file.parent.name: load_bench(file) for file in files()}
    real = {
        name: each["model"]
        for name, each in found.items()
        if each["model"]["weights"] == "real" and _suffices(Figures(each))
    }
    if not real:
        return None
    return max(real, key=lambda name: real[name]["table_bytes"] / real[name]["body_bytes"])


def files() -> list[Path]:
    """The committed results of benchmarks, by name."""
    return sorted(FOLDER.glob(f"*/{RESULTS}"))


def evaluated() -> list[Path]:
    """The folders of the committed evaluations, one per model."""
    return sorted(directory for directory in (FOLDER / "quality").glob("*") if directory.is_dir())


def summary(directory: Path) -> str:
    """One report of all tasks that a folder has results of."""
    found = (directory / task / RESULTS for task in TASKS)
    return markdown(eval_report([load_eval(file) for file in found if file.is_file()]))


def replaced(readme: str, text: str) -> str:
    """Replace the text between the marks of a README."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError("README.md has no marks around its table")
    return before + BEGIN + text + mark + after


def table(all_results: Sequence[Mapping[str, Any]]) -> str:
    """The machine, and a row for each of the results that have enough prompts.

    Results of a search for the smallest memory are left out: they have a report of their own.
    """
    shown = [each for each in map(Figures, all_results) if _suffices(each)]
    if not shown:
        return ""
    machines = dict.fromkeys(machine_text(each.results["machine"]) for each in shown)
    lines = [_EXPLANATION + f"{', and '.join(machines)}.", ""]
    columns = ["model", "compared with", "prompts", "rows of the head", "memory", "tokens/s, approximate"]
    columns += ["tokens/s, exact", "same text, exact"]
    lines += [f"| {' | '.join(columns)} |", "|---|---|" + "---:|" * (len(columns) - 2)]
    lines += [f"| {' | '.join(_cells(each))} |" for each in shown]
    return "\n".join(lines) + "\n"


def _title(results: Mapping[str, Any]) -> str:
    name = str(results["model"]["name"])
    return TITLES.get(name, name)


def _suffices(figures: Figures) -> bool:
    exact = _exact(figures)
    searched = any(row.limit_bytes for row in figures.rows)
    return exact is not None and figures.suffices(exact) and not searched


def _exact(figures: Figures) -> Row | None:
    return figures.row("prealloc")


def _cells(figures: Figures) -> list[str]:
    exact, approximate = _exact(figures), figures.row("prealloc-approximate")
    assert exact is not None
    results = figures.results
    stock = STOCK_NAMES[results["settings"]["backend"]] if figures.base.name == "stock" else "full head"
    same = NONE
    if exact.same_texts is not None and not figures.random_weights:
        same = f"{exact.same_texts} of {exact.n}"
    name = _title(results) + (" (random weights)" if figures.random_weights else "")
    return [
        f"{name}, {exact.data['dtype']}",
        stock,
        str(exact.n),
        f"{exact.static_rows:,} of {results['model']['vocab_rows']:,}",
        _ratio(figures, exact, lambda row: row.peak_bytes),
        _ratio(figures, approximate, lambda row: row.tokens_per_s),
        _ratio(figures, exact, lambda row: row.tokens_per_s),
        same,
    ]


def _ratio(figures: Figures, row: Row | None, figure: Callable[[Row], float | None]) -> str:
    if row is None or not figures.suffices(row):
        return NONE
    ratio = figures.ratio(row, figure)
    return NONE if ratio is None else f"{ratio:.2f} ×"


if __name__ == "__main__":
    main()
