"""A picture of coverage over sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vt_core.errors import OptionError


def figure_class() -> Any:
    """matplotlib's Figure; raises OptionError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError(
            "A plot needs the library matplotlib; install it with pip install matplotlib."
        ) from None
    return Figure


def plot_coverage(report: Mapping[str, Any], path: str | Path) -> None:
    """Draws the curve of a coverage report into a PNG file; raises OptionError where that cannot be done."""
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = report["curve"]
    misses = [100 * (1 - point["token_coverage"]) for point in points]
    axes.plot([point["rows"] for point in points], misses, marker="o", markersize=3, label="any size")
    axes.axvline(report["profiled_rows"], linestyle="--", color="gray", label="from here on the rank prior")
    summary = report["held_out"]
    axes.plot(
        summary["rows"], 100 * (1 - summary["token_coverage"]), "k*", markersize=10, label="this vocabulary"
    )
    axes.axvline(report["knee"], linestyle=":", color="gray", label="knee")
    axes.set(
        xlabel="static rows",
        ylabel="output tokens missing, %",
        title=f"{report['task']}, held out",
        ylim=(0, None),
    )
    axes.legend()
    try:
        figure.savefig(str(path), format="png", dpi=120)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}).") from error
