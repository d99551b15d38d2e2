"""What a task vocabulary holds, for people."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from vt_core.task import TaskVocabulary
from vt_core.token_bytes import TokenTable
from vt_core.vocabulary import Ids

EXAMPLES = 20
"""Tokens shown of each kind."""


def describe(task: TaskVocabulary, table: TokenTable | None = None) -> dict[str, Any]:
    """Sizes, sources and coverage of a task vocabulary; with the tokenizer's table, also tokens as text.

    `most_frequent` and `last_kept` are `{"id", "text", "count"}`, best first; `scripts` counts ids by the
    script of their first letter. Raises VocabularyError for a table of another tokenizer.
    """
    counted = np.flatnonzero(task.counts)
    report: dict[str, Any] = {
        "kind": "task",
        "name": task.name,
        "model": task.model,
        "tokenizer_digest": task.tokenizer_digest,
        "rows": len(task.ids),
        "profiled_rows": len(counted),
        "vocab_rows": task.vocab_size,
        "row_share": len(task.ids) / task.vocab_size if task.vocab_size else 0.0,
        "examples": task.examples,
        "prior": task.prior,
        "languages": list(task.languages),
        "tolerance": task.tolerance,
        "stages": dict(task.stages),
        "source": [dict(entry) for entry in task.source],
        "held_out": None if task.held_out is None else dict(task.held_out),
    }
    if table is not None:
        task.check(table.digest(), max(task.vocab_size, table.size))
        order = counted[np.lexsort((task.ids[counted], task.counts[counted]))][::-1]
        report["most_frequent"] = _tokens(task, table, order[:EXAMPLES])
        report["last_kept"] = _tokens(task, table, order[EXAMPLES:][-EXAMPLES:])
        report["scripts"] = _scripts(task, table)
    return report


def description_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The same as lines of a name and a text."""
    profiled, rows = report["profiled_rows"], report["rows"]
    lines = [
        ("task", report["name"] + (f", for {report['model']}" if report["model"] else "")),
        ("rows", f"{rows:,} of {report['vocab_rows']:,} ({report['row_share']:.1%})"),
        (
            "",
            f"{profiled:,} from {report['examples']:,} examples, {rows - profiled:,} from the rank prior",
        ),
        ("languages", ", ".join(report["languages"]) or "not filtered"),
        ("tokenizer", report["tokenizer_digest"]),
    ]
    if report["stages"]:
        lines.append(("stages", ", ".join(f"{stage} {size:,}" for stage, size in report["stages"].items())))
    lines.extend(("source", f"{entry['file']}, {entry['rows']:,} rows") for entry in report["source"])
    if report["held_out"]:
        missing = 1 - report["held_out"].get("token_coverage", 0.0)
        lines.append(
            ("held out", f"{missing:.2%} of the output tokens are in neither the input nor these rows")
        )
    for key in ("most_frequent", "last_kept"):
        if key in report:
            shown = " ".join(repr(token["text"])[1:-1].replace(" ", "\u2423") for token in report[key])
            lines.append((key.replace("_", " "), shown))
    if "scripts" in report:
        lines.append(("scripts", ", ".join(f"{name} {count:,}" for name, count in report["scripts"].items())))
    return lines


def _tokens(task: TaskVocabulary, table: TokenTable, positions: Ids) -> list[dict[str, Any]]:
    ids, counts = task.ids[positions].tolist(), task.counts[positions].tolist()
    return [{"id": id, "text": table.text(id), "count": count} for id, count in zip(ids, counts, strict=True)]


def _scripts(task: TaskVocabulary, table: TokenTable) -> dict[str, int]:
    found = Counter(_script(table.bytes[id] or b"") for id in task.ids.tolist() if id < table.size)
    return dict(found.most_common())


def _script(value: bytes) -> str:
    """First word of the Unicode name of the first letter, which is its script."""
    for character in value.decode("utf-8", "ignore"):
        if character.isalpha():
            return unicodedata.name(character, "other").split(" ")[0].lower()
    return "none"
