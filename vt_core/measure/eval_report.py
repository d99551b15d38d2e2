"""The report of evaluations: a function of their results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vt_core.measure.machine import machine_text
from vt_core.measure.report import NONE, Report, Table, span
from vt_core.measure.variants import EVAL_VARIANTS

Results = Mapping[str, Any]
Entry = Mapping[str, Any]


def eval_report(runs: Sequence[Results]) -> Report:
    """Build one report of several evaluations: a table with a row for each, then a section for each."""
    return Report(title="Quality", tables=[_overview(runs)], sections=[_section(run) for run in runs])


def _section(run: Results) -> Report:
    return Report(
        title=_name(run),
        warnings=[_few_rows(run)] if _few(run) else [],
        tables=[_rows(run), *(_metric(run, name) for name in run["metrics"])],
        facts=_facts(run),
    )


def _overview(runs: Sequence[Results]) -> Table:
    """Kept vocabulary and metrics of every variant (table 1 of VocabTailor)."""
    names = [name for name in EVAL_VARIANTS if any(_entry(run, name) for run in runs)]
    return Table(
        "Overview",
        "Kept vocabulary: metrics, all in percent. Kept: static rows plus the mean of learned and dynamic "
        "ones, as a share of the rows of the model's table.",
        ["task, model", "metrics", *(EVAL_VARIANTS[name].title for name in names), "n"],
        [
            [
                _name(run),
                " / ".join(run["metrics"]),
                *(_summary(_entry(run, name)) for name in names),
                f"{run['n']}, few" if _few(run) else str(run["n"]),
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
    """What the head of each variant held, and what it wrote."""
    return Table(
        "Vocabulary and texts",
        f"Rows of the head, of {run['vocab_rows']:,}; dynamic: mean, including learned ones. Same text: "
        "answers identical to the original's. Ended: answers that ended by themselves. Prompt, "
        "answer: mean tokens.",
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
    """One metric with its intervals (tables 7 to 9 of VocabTailor)."""
    interval = f"{run['confidence']:.0%}"
    return Table(
        name,
        f"In percent; {run['metrics'][name]}. Difference: minus the original's, on the same rows.",
        ["variant", "kept", name, interval, "difference", interval, "n"],
        [
            [entry["title"], _kept(entry), *_scores(entry["metrics"][name]), str(entry["n"])]
            for entry in run["variants"]
        ],
    )


def _scores(score: Mapping[str, Any]) -> list[str]:
    cells = [f"{score['value']:.2f}", span(score["low"], score["high"])]
    difference = score["difference"]
    if difference is None:
        return [*cells, NONE, NONE]
    return [*cells, f"{difference['value']:+.2f}", span(difference["low"], difference["high"], "+")]


def _facts(run: Results) -> list[tuple[str, str]]:
    machine, settings, pruning = run["machine"], run["settings"], run["pruning"]
    left_out = f"; {run['left_out']} left out, too long for the model" if run["left_out"] else ""
    quantize = f", {settings['quantize']}" if settings.get("quantize") else ""
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
            f"{run['resamples']:,} bootstrap resamples of the rows, seed {run['seed']}, the same for both "
            "sides of a difference",
        ),
        ("task vocabulary", _vocabulary(run)),
    ]
    if pruning is not None:
        facts.append(
            (
                "static pruning",
                f"{pruning['kept_ids']:,} ids: the {pruning['corpus_ids']:,} of the corpus's inputs and "
                "outputs, the pieces that merges make them from, single bytes, and special tokens",
            )
        )
    if run["sandbox"] is not None:
        kept = ", ".join(run["sandbox"]) or "nothing but limits on time and memory"
        facts.append(("sandbox", f"unit tests ran in a sandbox: {kept}"))
    return [
        *facts,
        (
            "machine",
            f"{machine_text(machine)}; {settings['backend']} on {settings['device']}, {settings['dtype']}"
            + quantize,
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


def _few_rows(run: Results) -> str:
    return f"Few rows ({run['n']}, fewer than {run['minimum']}): other rows may give quite different scores."


def _kept(entry: Entry) -> str:
    return f"{100 * entry['kept']:.2f} %"
