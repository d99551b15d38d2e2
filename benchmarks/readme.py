"""The README's table of benchmarks: a function of the committed results, as each results' report is.

    python -m benchmarks.readme

writes both anew: the report beside each ``benchmarks/results/NAME/results.json``, that of the tasks in each
``benchmarks/results/quality/NAME``, and the README between its two marks, with its picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vt_core.measure.bench.figures import Figures, Row
from vt_core.measure.bench.machine import machine_text
from vt_core.measure.bench.output import load
from vt_core.measure.bench.plots import draw
from vt_core.measure.bench.report import report
from vt_core.measure.quality.report import load as load_quality
from vt_core.measure.quality.report import report as quality_report

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
BEGIN, END = "<!-- bench: python -m benchmarks.readme -->\n", "<!-- /bench -->\n"
STOCK_NAMES = {"torch": "transformers", "mlx": "mlx-lm"}
#: What people call the directories that were measured.
TITLES = {"gemma-vt": "Gemma 3 270M", "qwen-vt": "Qwen2.5-Coder 0.5B", "smollm2-vt": "SmolLM2 135M"}
#: Tasks in the order of the quality reports.
TASKS = ("math", "qa", "summarization", "code", "translation")
NONE = "–"


@click.command()
def main() -> None:
    for file in files():
        file.with_name("report.md").write_text(report(load(file)), encoding="utf-8")
    for directory in evaluated():
        (directory / "report.md").write_text(summary(directory), encoding="utf-8")
    if (name := pictured()) is not None:
        memory = next(each for each in draw(load(RESULTS / name / "results.json")) if each.name == "memory")
        (RESULTS / name / "memory.png").write_bytes(memory.light)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), section()), encoding="utf-8")


def section() -> str:
    """What stands between the marks: a table and a picture."""
    text = table([load(file) for file in files()])
    if (name := pictured()) is None:
        return text
    title = _title(load(RESULTS / name / "results.json"))
    path = (RESULTS / name / "memory.png").relative_to(ROOT)
    return f"{text}\n![Peak memory of {title} by component]({path})\n"


def pictured() -> str | None:
    """Of which results there is a picture: of the model that its tables are most of, real weights."""
    found = {file.parent.name: load(file) for file in files()}
    real = {
        name: each["model"]
        for name, each in found.items()
        if each["model"]["weights"] == "real" and _suffices(Figures(each))
    }
    if not real:
        return None
    return max(real, key=lambda name: real[name]["table_bytes"] / real[name]["body_bytes"])


def files() -> list[Path]:
    """The committed results, by name."""
    return sorted(RESULTS.glob("*/results.json"))


def evaluated() -> list[Path]:
    """Directories with the committed results of a model's tasks."""
    return sorted(directory for directory in (RESULTS / "quality").glob("*") if directory.is_dir())


def summary(directory: Path) -> str:
    """One quality report of all tasks that a directory has results of."""
    found = (directory / task / "results.json" for task in TASKS)
    return quality_report([load_quality(file) for file in found if file.is_file()])


def replaced(readme: str, text: str) -> str:
    """A README with another text between the marks."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError("README.md has lost the marks of its table")
    return before + BEGIN + text + mark + after


def table(all_results: Sequence[Mapping[str, Any]]) -> str:
    """What every row was measured on, and a row for each of the results that suffice for a claim. A search
    for the smallest memory is a report by itself.
    """
    shown = [each for each in map(Figures, all_results) if _suffices(each)]
    if not shown:
        return ""
    machines = dict.fromkeys(machine_text(each.results["machine"]) for each in shown)
    lines = [f"Figures are ratios to the stock framework; {', and '.join(machines)}.", ""]
    columns = ["model", "to", "prompts", "rows of the head", "memory of the process", "tokens/s, approximate"]
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
