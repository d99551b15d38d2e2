"""`report.md`: the paper's tables of quality, from nothing but `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vt_core.errors import DataError
from vt_core.files.json_files import read_object, write_atomically
from vt_core.measure.bench.machine import machine_text
from vt_core.measure.bench.report import markdown
from vt_core.measure.bench.tables import NONE, Table
from vt_core.measure.quality.results import FORMAT
from vt_core.measure.quality.variants import VARIANTS

Results = Mapping[str, Any]
Entry = Mapping[str, Any]

RESULTS, REPORT = "results.json", "report.md"
TOO_FEW = "too few rows"


def write(results: Results, out: Path) -> None:
    """Writes the results and what is made of them into a folder; raises OutputError where that fails."""
    write_atomically(out / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / REPORT, report([results]))


def load(path: Path) -> dict[str, Any]:
    """Results from a file; raises DataError."""
    results = read_object(path, "results file of an evaluation", DataError, strict=False)
    if results.get("format") != FORMAT:
        raise DataError(f"{path}: holds no results of an evaluation in the form {FORMAT}.")
    return results


def report(runs: Sequence[Results]) -> str:
    """Markdown: a row for each evaluation first, then each by itself."""
    lines = ["# Quality", "", *_section(_overview(runs))]
    for run in runs:
        lines += ["", f"## {_name(run)}", ""]
        if _few(run):
            lines += [f"> **Too few rows for any claim: {run['n']}, fewer than {run['minimum']}.**", ""]
        for table in (_rows(run), *(_metric(run, name) for name in run["metrics"])):
            lines += [f"### {table.title}", "", *_section(table), ""]
        lines += [f"- {name}: {text}" for name, text in _facts(run)]
    return "\n".join(lines) + "\n"


def _section(table: Table) -> list[str]:
    return [table.note, "", *markdown(table)]


def _overview(runs: Sequence[Results]) -> Table:
    """Vocabulary kept and metrics of every variant (the paper's table 1)."""
    names = [name for name in VARIANTS if any(_entry(run, name) for run in runs)]
    return Table(
        "Quality",
        "Vocabulary kept, and metrics, all in percent. Kept: static rows and, on average, learned and "
        "dynamic ones, of the rows of the model's table.",
        ["task, model", "metrics", *(VARIANTS[name].title for name in names), "n"],
        [
            [
                _name(run),
                " / ".join(run["metrics"]),
                *(_summary(_entry(run, name)) for name in names),
                f"{run['n']}, {TOO_FEW}" if _few(run) else str(run["n"]),
            ]
            for run in runs
        ],
    )


def _summary(entry: Entry | None) -> str:
    if entry is None:
        return NONE
    values = " / ".join(f"{score['value']:.2f}" for score in entry["metrics"].values())
    return f"{_kept(entry)}: {values}"


def _rows(run: Results) -> Table:
    """What each variant's head held, and what it wrote."""
    return Table(
        "Vocabulary and texts",
        f"Rows of the head, of {run['vocab_rows']:,}; dynamic: on average, learned ones included. Same text: "
        "answers that are the original's, letter for letter. Ended: those that came to an end by themselves. "
        "Tokens on average.",
        ["variant", "static", "dynamic", "kept", "same text", "ended", "prompt", "answer", "n"],
        [
            [
                entry["title"],
                f"{entry['static_rows']:,}",
                f"{entry['dynamic_rows']:.0f}",
                _kept(entry),
                NONE if entry["same_text"] is None else f"{entry['same_text']} of {entry['n']}",
                f"{entry['finished']} of {entry['n']}",
                f"{entry['prompt_tokens']:.0f}",
                f"{entry['generated_tokens']:.0f}",
                str(entry["n"]),
            ]
            for entry in run["variants"]
        ],
    )


def _metric(run: Results, name: str) -> Table:
    """One metric with its intervals (the paper's tables 7 to 9)."""
    interval = f"{run['confidence']:.0%}"
    return Table(
        name,
        f"In percent; {run['metrics'][name]}. Difference: less the original's, on the same rows.",
        ["variant", "kept", name, interval, "difference", interval, "n"],
        [
            [entry["title"], _kept(entry), *_scores(run, entry["metrics"][name]), str(entry["n"])]
            for entry in run["variants"]
        ],
    )


def _scores(run: Results, score: Mapping[str, Any]) -> list[str]:
    cells = [f"{score['value']:.2f}", _interval(run, score)]
    difference = score["difference"]
    if difference is None:
        return [*cells, NONE, NONE]
    return [*cells, f"{difference['value']:+.2f}", _interval(run, difference, sign="+")]


def _interval(run: Results, score: Mapping[str, Any], sign: str = "") -> str:
    return TOO_FEW if _few(run) else f"{score['low']:{sign}.2f} to {score['high']:{sign}.2f}"


def _facts(run: Results) -> list[tuple[str, str]]:
    """What was evaluated, with what, on what."""
    machine, settings, pruning = run["machine"], run["settings"], run["pruning"]
    left_out = f"; {run['left_out']} left out, too long for the model" if run["left_out"] else ""
    facts = [
        ("command", f"`{run['command']}`"),
        (
            "rows",
            f"{run['n']} of {', '.join(name for name, _ in settings['data'])}, the same for every variant"
            f"{left_out}; greedy, up to {settings['max_tokens']} tokens",
        ),
        ("prompt", f"`{json.dumps(settings['prompt'], ensure_ascii=False)}`"),
        (
            "intervals",
            f"{run['resamples']:,} bootstrap resamples of the rows, seed {run['seed']}; the same for both "
            "sides of a difference",
        ),
        ("task vocabulary", _vocabulary(run)),
    ]
    if pruning is not None:
        facts.append(
            (
                "static pruning",
                f"{pruning['kept_ids']:,} ids: the {pruning['corpus_ids']:,} of the corpus' inputs and "
                "outputs, the pieces that merges make them from, single bytes, and special tokens",
            )
        )
    if run["sandbox"] is not None:
        kept = ", ".join(run["sandbox"]) or "nothing but limits on time and memory"
        facts.append(("sandbox", f"unit tests ran shut in: {kept}"))
    return [
        *facts,
        (
            "machine",
            f"{machine_text(machine)}; {settings['backend']} on {settings['device']}, {settings['dtype']}",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
    ]


def _vocabulary(run: Results) -> str:
    vocabulary = run["vocabulary"]
    if vocabulary is None:
        return "none: the rank prior"
    source = ", ".join(f"{entry['rows']:,} rows of {entry['file']}" for entry in vocabulary["source"])
    return f"{vocabulary['name']}, {vocabulary['ids']:,} ids" + (f", from {source}" if source else "")


def _entry(run: Results, name: str) -> Entry | None:
    return next((entry for entry in run["variants"] if entry["name"] == name), None)


def _name(run: Results) -> str:
    return f"{run['task']}, {run['model']}"


def _few(run: Results) -> bool:
    return bool(run["n"] < run["minimum"])


def _kept(entry: Entry) -> str:
    return f"{100 * entry['kept']:.2f} %"
