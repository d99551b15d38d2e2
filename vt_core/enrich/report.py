"""What enriching gains: a report as JSON values, as text, and as a plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vt_core.enrich.corpus import Outputs
from vt_core.enrich.selection import Selection
from vt_core.enrich.tokenizer import MergeableTokenizer
from vt_core.enrich.training import LossPoint
from vt_core.errors import escape_controls
from vt_core.files.json_files import write_atomically
from vt_core.profile.plot import figure_class

#: Sizes for which the report says what they would gain.
SIZES = (10, 25, 50, 100, 200, 300, 400, 500, 750, 1000, 1500, 2000)
_SHOWN = 20


def make_report(
    outputs: Outputs, selection: Selection, tokenizer: MergeableTokenizer, asked: int
) -> dict[str, Any]:
    """The report, as JSON values.

    Args:
        asked: how many merged tokens the user asked for.
    """
    before, after = outputs.tokens, outputs.merged_tokens(tokenizer.merges)
    texts = outputs.examples
    return {
        "examples": texts,
        "bad_rows": outputs.bad_rows,
        "asked": asked,
        "rows": len(selection.ngrams),
        "collided": selection.collided,
        "refused": selection.refused,
        "tokens_before": before,
        "tokens_after": after,
        # Each text has one more step, for the token that ends it.
        "fewer_steps": (before + texts) / (after + texts),
        "entropy_before": selection.curve[0].entropy,
        "entropy_after": selection.curve[-1].entropy,
        "curve": [
            {"rows": point.rows, "tokens": point.tokens, "entropy": point.entropy}
            for point in selection.curve
        ],
        "merged": [
            {
                "id": ngram.id,
                "text": tokenizer.text(ngram.parts),
                "parts": list(ngram.parts),
                "frequency": ngram.frequency,
                "collision": ngram.collision,
            }
            for ngram in selection.ngrams
        ],
    }


def report_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    merged: Sequence[dict[str, Any]] = report["merged"]
    lines = [
        f"{report['examples']:,} outputs, {report['tokens_before']:,} tokens; with {report['rows']:,} merged "
        f"tokens {report['tokens_after']:,}: {report['fewer_steps']:.2f} times fewer steps",
        f"Rényi-2 entropy of a token: {report['entropy_before']:.2f} bits, then "
        f"{report['entropy_after']:.2f}",
        "  merged tokens    tokens  tokens/text  entropy",
    ]
    for point in report["curve"]:
        per_text = point["tokens"] / report["examples"]
        lines.append(
            f"  {point['rows']:>13,} {point['tokens']:>9,} {per_text:>12.1f} {point['entropy']:>8.2f}"
        )
    if report["rows"] < report["asked"]:
        lines.append(
            f"The corpus gives {report['rows']:,} merged tokens, not {report['asked']:,}: no other n-gram "
            f"occurs twice ({report['collided']:,} collide with longer tokens, {report['refused']:,} have a "
            "spelling that the tokenizer cannot take)."
        )
    shown = ", ".join(repr(entry["text"]) for entry in merged[:_SHOWN])
    lines.append(escape_controls(f"merged: {shown}{', …' if len(merged) > _SHOWN else ''}"))
    return "\n".join(lines)


def plot_loss(curve: Sequence[LossPoint], path: Path) -> None:
    """Plot the loss of a training run as a PNG file.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for evaluation, label, marker in ((False, "training", ""), (True, "evaluation", "o")):
        points = [point for point in curve if point.evaluation == evaluation]
        if points:
            steps = [point.step for point in points]
            axes.plot(steps, [point.loss for point in points], marker=marker, markersize=4, label=label)
    axes.set(xlabel="updates", ylabel="loss, nats per output token", ylim=(0, None))
    axes.legend()
    _save(figure, path)


def plot_curve(report: dict[str, Any], path: Path) -> None:
    """Plot tokens per text and entropy against the number of merged tokens as a PNG file.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    left = figure.add_subplot()
    rows = [point["rows"] for point in report["curve"]]
    per_text = [point["tokens"] / report["examples"] for point in report["curve"]]
    left.plot(rows, per_text, marker="o", markersize=4, label="tokens per text")
    left.set(xlabel="merged tokens", ylabel="tokens per text", ylim=(0, None))
    right = left.twinx()
    entropies = [point["entropy"] for point in report["curve"]]
    right.plot(rows, entropies, color="gray", linestyle="--", label="entropy")
    right.set_ylabel("Rényi-2 entropy of a token, bits")
    figure.legend(loc="outside upper right", ncols=2)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
