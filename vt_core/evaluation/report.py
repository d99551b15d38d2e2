"""`report.md`: the paper's tables of quality, from nothing but `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vt_core.evaluation.variants import VARIANTS
from vt_core.json_fields import write_atomically

Results = Mapping[str, Any]

RESULTS = "results.json"
REPORT = "report.md"


def write(results: Results, directory: Path) -> None:
    """Writes `results.json` and `report.md`; raises VocabularyError where they cannot be written."""
    write_atomically(directory / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(directory / REPORT, report([results]).encode())


def report(runs: Sequence[Results]) -> str:
    """The report of some evaluations, as Markdown."""
    parts = ["# Quality", "", *_overview(runs)]
    for run in runs:
        parts += ["", *_detail(run)]
    return "\n".join(parts) + "\n"


def _overview(runs: Sequence[Results]) -> list[str]:
    """A row for each task and model: vocabulary kept and metrics of every variant (the paper's table 1)."""
    names = [name for name in VARIANTS if any(_variant(run, name) for run in runs)]
    lines = _table_head(["task, model", "metrics", *(VARIANTS[name].title for name in names)])
    for run in runs:
        cells = [f"{run['task']}, {run['model']}", "/".join(run["metrics"])]
        for name in names:
            entry = _variant(run, name)
            if entry is None:
                cells.append("–")
                continue
            values = "/".join(f"{score['value']:.2f}" for score in entry["metrics"].values())
            cells.append(f"{_kept(entry)}: {values}" + _warning(run))
        lines.append(_row(cells))
    return [
        "Vocabulary kept (static and, on average, learned and dynamic rows, in percent of the model's), and "
        "metrics in percent.",
        "",
        *lines,
    ]


def _detail(run: Results) -> list[str]:
    """One evaluation: rows and texts of each variant, and its metrics with intervals (tables 7 to 9)."""
    lines = [f"## {run['task']}, {run['model']}", ""]
    lines += _table_head(["variant", "static", "+ dynamic", "of V", "same text", "finished", "tokens", "n"])
    for entry in run["variants"]:
        same = "–" if entry["same_text"] is None else f"{entry['same_text']} of {entry['n']}"
        lines.append(
            _row(
                [
                    entry["title"],
                    f"{entry['static_rows']:,}",
                    f"{entry['dynamic_rows']:.0f}",
                    _kept(entry),
                    same,
                    f"{entry['finished']} of {entry['n']}",
                    f"{entry['prompt_tokens']:.0f} + {entry['generated_tokens']:.0f}",
                    f"{entry['n']}{_warning(run)}",
                ]
            )
        )
    for metric, definition in run["metrics"].items():
        lines += ["", f"**{metric}** ({definition})", ""]
        interval = f"{run['confidence']:.0%} interval"
        lines += _table_head(["variant", metric, interval, "less the original's", interval, "n"])
        lines += [_row(_scores(run, entry, entry["metrics"][metric])) for entry in run["variants"]]
    return [*lines, "", *_notes(run)]


def _scores(run: Results, entry: Mapping[str, Any], score: Mapping[str, Any]) -> list[str]:
    difference = score["difference"]
    cells = [entry["title"], f"{score['value']:.2f}", _interval(run, score)]
    if difference is None:
        cells += ["–", "–"]
    else:
        cells += [f"{difference['value']:+.2f}", _interval(run, difference, sign="+")]
    return [*cells, f"{entry['n']}{_warning(run)}"]


def _interval(run: Results, score: Mapping[str, Any], sign: str = "") -> str:
    if run["n"] < run["minimum"]:
        return "too few"
    return f"{score['low']:{sign}.2f} to {score['high']:{sign}.2f}"


def _notes(run: Results) -> list[str]:
    machine, versions = run["machine"], run["versions"]
    notes = [
        f"`{' '.join(run['command'])}`",
        "",
        f"{run['n']} rows, the same for every variant"
        + (f"; {run['left_out']} left out, too long for the model" if run["left_out"] else "")
        + f". Greedy, {run['settings']['max_tokens']} tokens at the most. Intervals: "
        f"{run['resamples']:,} bootstrap resamples of the rows, seed {run['seed']}; differences are paired.",
    ]
    if run["n"] < run["minimum"]:
        notes.append(
            f"\\* Fewer than {run['minimum']} rows are too few: these figures show that the command runs, "
            "and claim nothing."
        )
    if run["pruning"] is not None:
        notes.append(
            f"Static pruning keeps {run['pruning']['kept_ids']:,} ids: the {run['pruning']['corpus_ids']:,} "
            "of the corpus' inputs and outputs, the pieces that merges make them from, single bytes and "
            "special tokens."
        )
    if run["sandbox"] is not None:
        kept = ", ".join(run["sandbox"]) or "nothing but limits on time and memory"
        notes.append(f"Unit tests ran in a sandbox; what the system shut in: {kept}.")
    notes.append(
        f"{machine['backend']} on {machine['device']}, {machine['dtype']}; {machine['system']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )
    return notes


def _variant(run: Results, name: str) -> Mapping[str, Any] | None:
    return next((entry for entry in run["variants"] if entry["name"] == name), None)


def _kept(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['kept']:.2f} %"


def _warning(run: Results) -> str:
    return " \\*" if run["n"] < run["minimum"] else ""


def _table_head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
