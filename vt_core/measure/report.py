"""Reports as data, and their Markdown and HTML forms."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vt_core.measure.plots import Picture

#: Cell of a figure that does not exist.
NONE = "–"
_TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are numbers."""

    title: str
    #: How to read it.
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """A report; Markdown in its texts is limited to `` `code` ``."""

    title: str
    tables: Sequence[Table]
    #: What must be read before any figure.
    warnings: Sequence[str] = ()
    #: The main figures: value and meaning.
    cards: Sequence[tuple[str, str]] = ()
    #: One sentence for each comparison.
    claims: Sequence[str] = ()
    #: How the figures were measured: name and text.
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Report] = ()


def markdown(report: Report, level: int = 1) -> str:
    """Format a report as Markdown; ``level`` is that of its heading."""
    return "\n".join(_lines(report, "#" * level)) + "\n"


def _lines(report: Report, heading: str) -> list[str]:
    lines = [f"{heading} {report.title}", ""]
    for warning in report.warnings:
        lines += [f"> **{warning}**", ""]
    if report.claims:
        lines += [*(f"- {claim}" for claim in report.claims), ""]
    for table in report.tables:
        rule = ["---", *["---:"] * (len(table.columns) - 1)]
        lines += [f"{heading}# {table.title}", "", table.note, ""]
        lines += [*(f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *table.rows)), ""]
    if report.facts:
        lines += [f"{heading}# How it was measured", ""]
        lines += [*(f"- {name}: {text}" for name, text in report.facts), ""]
    for section in report.sections:
        lines += [*_lines(section, f"{heading}#"), ""]
    return lines[:-1]


def html(report: Report, pictures: Sequence[Picture] = (), no_pictures: str = "") -> str:
    """Format a report as one HTML file that loads nothing, for light and dark pages.

    Args:
        report: a report without sections.
        pictures: shown above the tables.
        no_pictures: why there are none.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, pictures=pictures, no_pictures=no_pictures)


def number(value: float | None) -> str:
    """Format with three digits."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(size: int | None) -> str:
    """Format bytes as megabytes with three digits."""
    return NONE if size is None else number(size / 1e6) if size else "0"


def span(low: float, high: float, sign: str = "") -> str:
    """Format an interval."""
    return f"{low:{sign}.2f} to {high:{sign}.2f}"
