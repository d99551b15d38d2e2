"""The report of ``eval --compare``: a function of its results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vt_core.measure.machine import machine_text
from vt_core.measure.report import NONE, Report, Table, span

Results = Mapping[str, Any]


def models_report(results: Results) -> Report:
    """Build the report of a comparison of models."""
    few = results["n"] < results["minimum"]
    warning = f"Few rows ({results['n']}, fewer than {results['minimum']}): other rows may score differently."
    return Report(
        title=f"Models: {results['task']}",
        warnings=[warning] if few else [],
        tables=[_speed(results), *(_metric(results, name) for name in results["metrics"])],
        facts=_facts(results),
    )


def _speed(results: Results) -> Table:
    interval = f"{results['confidence']:.0%}"
    return Table(
        "Speed and texts",
        "Exact decoding, all models in turn on each row. Characters/s: of answers, over the whole calls. "
        f"Speed: characters/s divided by those of {results['models'][0]['name']}, on the same rows. Ended: "
        "answers that ended by themselves.",
        [
            *("model", "drafts", "tokens/text", interval, "characters/text", "characters/s", "speed"),
            *(interval, "ended", "n"),
        ],
        [
            [
                entry["name"],
                "yes" if entry["drafts"] else "no",
                f"{entry['tokens']['value']:.1f}",
                span(entry["tokens"]["low"], entry["tokens"]["high"]),
                f"{entry['characters']:.0f}",
                f"{entry['characters_per_s']['value']:.1f}",
                NONE if entry["speed"] is None else f"{entry['speed']:.2f} ×",
                NONE if entry["speed_interval"] is None else span(*entry["speed_interval"]),
                f"{entry['finished']} of {results['n']}",
                str(results["n"]),
            ]
            for entry in results["models"]
        ],
    )


def _metric(results: Results, name: str) -> Table:
    interval = f"{results['confidence']:.0%}"
    rows = []
    for entry in results["models"]:
        score = entry["metrics"][name]
        difference = score["difference"]
        cells = [entry["name"], f"{score['value']:.2f}", span(score["low"], score["high"])]
        if difference is None:
            cells += [NONE, NONE]
        else:
            cells += [f"{difference['value']:+.2f}", span(difference["low"], difference["high"], "+")]
        rows.append([*cells, str(results["n"])])
    first = results["models"][0]["name"]
    return Table(
        name,
        f"In percent; {results['metrics'][name]}. Difference: minus that of {first}, on the same rows.",
        ["model", name, interval, "difference", interval, "n"],
        rows,
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    settings = results["settings"]
    left_out = f"; {results['left_out']} left out, too long for a model" if results["left_out"] else ""
    files = ", ".join(name for name, _ in settings["data"])
    return [
        ("command", f"`{results['command']}`"),
        ("models", "; ".join(f"{entry['name']}: {entry['model']}" for entry in results["models"])),
        (
            "rows",
            f"{results['n']} of {files}, the same for every model{left_out}; greedy, up to "
            f"{settings['max_tokens']} tokens",
        ),
        ("prompt", f"`{json.dumps(settings['prompt'], ensure_ascii=False)}`"),
        ("intervals", f"{results['resamples']:,} bootstrap resamples of the rows, seed {results['seed']}"),
        (
            "machine",
            f"{machine_text(results['machine'])}; {settings['backend']} on {settings['device']}, "
            f"{settings['dtype']}" + (f", {settings['quantize']}" if settings["quantize"] else ""),
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())),
    ]
