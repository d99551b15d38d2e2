"""Plots coverage against the size of the static set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vt_core.errors import OptionError, escape_controls
from vt_core.files.json_files import write_atomically


def figure_class() -> Any:
    """matplotlib's Figure class. Raises OptionError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError(
            "A plot needs the library matplotlib; install it with pip install matplotlib."
        ) from None
    return Figure


def plot_coverage(report: Mapping[str, Any], path: str | Path) -> None:
    """Plot the curve of a coverage report as a PNG file.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = report["curve"]
    misses = [100 * (1 - point["token_coverage"]) for point in points]
    axes.plot([point["rows"] for point in points], misses, marker="o", markersize=3, label="any size")
    axes.axvline(report["profiled_rows"], linestyle="--", color="gray", label="rank prior starts here")
    summary = report["held_out"]
    axes.plot(
        summary["rows"], 100 * (1 - summary["token_coverage"]), "k*", markersize=10, label="this vocabulary"
    )
    axes.axvline(report["knee"], linestyle=":", color="gray", label="knee")
    axes.set(
        xlabel="static rows",
        ylabel="output tokens missing, %",
        title=f"{escape_controls(report['task'])}, held out",
        ylim=(0, None),
    )
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
