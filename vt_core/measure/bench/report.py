"""The report as Markdown: a function of the results, so that anyone can make it again from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vt_core.measure.bench.figures import Figures
from vt_core.measure.bench.tables import Table, claims, facts, tables, title, warnings


def report(results: Mapping[str, Any]) -> str:
    """Markdown. Raises DataError for results of another schema."""
    figures = Figures(results)
    lines = [f"# {title(figures)}", ""]
    for warning in warnings(figures):
        lines += [f"> **{warning}**", ""]
    lines += [f"- {claim}" for claim in claims(figures)]
    lines += [""]
    for table in tables(figures):
        lines += [f"## {table.title}", "", table.note, "", *markdown(table), ""]
    lines += ["## How it was measured", ""]
    lines += [f"- {name}: {_code(name, text)}" for name, text in facts(figures)]
    return "\n".join(lines) + "\n"


def markdown(table: Table) -> Sequence[str]:
    """The lines of a table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *table.rows)]


def _code(name: str, text: str) -> str:
    return f"`{text}`" if name == "command" else text
