"""The report as one HTML file: nothing is loaded from anywhere, light and dark as the reader has it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vt_core.measure.bench.figures import Figures
from vt_core.measure.bench.plots import Picture
from vt_core.measure.bench.tables import cards, claims, facts, tables, title, warnings

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(results: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """HTML. Raises DataError for results of another schema."""
    from jinja2 import Environment, StrictUndefined

    figures = Figures(results)
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title(figures),
        warnings=warnings(figures),
        cards=cards(figures),
        claims=claims(figures),
        pictures=pictures,
        tables=tables(figures),
        facts=facts(figures),
    )
