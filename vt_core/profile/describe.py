"""What a task vocabulary holds, for people."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from vt_core.vocab.active import Ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

if TYPE_CHECKING:
    from vt_core.files.manifest import Manifest

EXAMPLES = 20
"""Tokens shown of each kind."""


def describe(
    task: TaskVocabulary, table: TokenTable | None = None, manifest: Manifest | None = None
) -> dict[str, Any]:
    """Sizes, sources and coverage of a task vocabulary.

    With the tokenizer's `table` also tokens as text: `most_frequent` and `last_kept` are
    `{"id", "text", "count"}`, best first, and `scripts` counts ids by the script of their first letter. With
    the `manifest` of a model directory too, the bytes of its tables and of the task's and the special rows.
    Raises VocabularyError for a table of another tokenizer.
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
    if table is not None and manifest is not None:
        task.check(manifest.tokenizer_digest, manifest.vocab_rows)
        active = len(np.union1d(task.ids, table.special_ids(manifest.vocab_rows)))
        report["active_rows"] = active
        report["vocab_bytes_full"] = manifest.table_bytes
        report["vocab_bytes_resident"] = manifest.table_bytes_of(active)
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
    if "active_rows" in report:
        resident, full = report["vocab_bytes_resident"] / 1e6, report["vocab_bytes_full"] / 1e6
        lines.append(
            (
                "memory",
                f"{resident:,.1f} MB of {full:,.1f} MB, for {report['active_rows']:,} rows with special ones",
            )
        )
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
