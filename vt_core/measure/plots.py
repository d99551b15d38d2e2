"""Pictures of a benchmark as PNG, each in a light and a dark form."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from vt_core.measure.figures import Figures, Row
from vt_core.measure.variants import FULL, STOCK, parse_variant, undrafted


@dataclass(frozen=True)
class Look:
    """Colors of a light or dark page."""

    page: str
    text: str
    grid: str
    blue: str
    orange: str
    pale: str
    gray: str
    faint: str


LIGHT = Look("#ffffff", "#1f2328", "#d8dee4", "#2f6fb3", "#e08a1e", "#f3c677", "#8c959f", "#d0d7de")
DARK = Look("#161b22", "#e6edf3", "#30363d", "#58a6ff", "#f0a042", "#8a6320", "#6e7681", "#444c56")


@dataclass(frozen=True)
class Picture:
    """One picture."""

    #: File name without suffix.
    name: str
    #: What it shows.
    text: str
    #: Content of the PNG file for a light page.
    light: bytes
    #: Content of the PNG file for a dark page.
    dark: bytes


def draw(results: Mapping[str, Any]) -> list[Picture]:
    """Draw every picture that the results have data for.

    Raises:
        OptionError: matplotlib is not installed.
    """
    from vt_core.profile.plot import figure_class

    figure_class()
    figures = Figures(results)
    pictures = []
    for name, text, wanted, drawn in _PICTURES:
        if wanted(figures):
            light, dark = (_png(figures, look, text, drawn) for look in (LIGHT, DARK))
            pictures.append(Picture(name, text + _caveat(figures), light, dark))
    return pictures


def _caveat(figures: Figures) -> str:
    """Caveats in the title, for readers who see the picture alone."""
    parts = ["random weights"] if figures.random_weights else []
    if not all(map(figures.suffices, figures.rows)):
        parts.append("few prompts")
    return f" ({', '.join(parts)})" if parts else ""


def _png(figures: Figures, look: Look, text: str, drawn: Callable[[Figures, Look, Any], None]) -> bytes:
    from vt_core.profile.plot import figure_class

    bars = drawn in (_memory, _latency)
    height = 1.3 + 0.32 * len(_plain(figures)) if bars else 4.2
    figure = figure_class()(figsize=(8, height), layout="constrained", facecolor=look.page)
    axes = figure.add_subplot(facecolor=look.page)
    model = figures.results["model"]["name"]
    axes.set_title(f"{model}: {text}{_caveat(figures)}", color=look.text, fontsize=10, loc="left")
    axes.grid(True, axis="x" if bars else "both", color=look.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=look.text, labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    drawn(figures, look, axes)
    axes.xaxis.label.set_color(look.text)
    axes.yaxis.label.set_color(look.text)
    for legend in filter(None, (axes.get_legend(), *figure.legends)):
        legend.get_frame().set_alpha(0)
        for label in legend.get_texts():
            label.set_color(look.text)
    file = io.BytesIO()
    # No version in the metadata: the same results give the same bytes.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _memory(figures: Figures, look: Look, axes: Any) -> None:
    rows = _plain(figures)
    parts = {row.name: figures.memory_parts(row) for row in rows}
    colors = {
        "frameworks": look.gray,
        "weights": look.blue,
        "vocabulary": look.orange,
        "tables in host memory": look.pale,
        "rest": look.faint,
    }
    found = {label for each in parts.values() for label in each}
    shown = {label: color for label, color in colors.items() if label in found}
    _stacked(axes, rows, shown, lambda row, label: parts[row.name].get(label, 0) / 1e6)
    for at, row in enumerate(rows):
        peak = figures.peak(row) / 1e6
        axes.plot([peak, peak], [at - 0.4, at + 0.4], color=look.text, linewidth=1.5)
    axes.set_xlabel("MB; line: measured peak, bars: computed components")


def _latency(figures: Figures, look: Look, axes: Any) -> None:
    colors = {"prefill": look.blue, "decode": look.orange}
    rows = _plain(figures)
    parts = {row.name: {"prefill": row.prefill_s / row.n, "decode": row.decode_s / row.n} for row in rows}
    _stacked(axes, rows, colors, lambda row, label: parts[row.name][label])
    axes.set_xlabel("mean seconds per request")


def _stacked(
    axes: Any, rows: Sequence[Row], colors: Mapping[str, str], size: Callable[[Row, str], float]
) -> None:
    """Draw stacked horizontal bars, the first variant on top."""
    lefts = [0.0] * len(rows)
    for label, color in colors.items():
        widths = [size(row, label) for row in rows]
        axes.barh(range(len(widths)), widths, left=lefts, color=color, label=label, height=0.62)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.figure.legend(loc="outside lower center", ncols=len(colors), fontsize=9)


def _speed(figures: Figures, look: Look, axes: Any) -> None:
    _curves(figures, look, axes, lambda row: row.tokens_per_s, (False, True))
    for name, style in ((STOCK, "--"), (FULL, ":")):
        row = figures.row(name)
        if row is not None and row.tokens_per_s is not None:
            axes.axhline(row.tokens_per_s, linestyle=style, color=look.text, linewidth=1, label=name)
    axes.set(xlabel="static rows of the head", ylabel="tokens/s", ylim=(0, None))
    axes.legend(fontsize=9)


def _misses(figures: Figures, look: Look, axes: Any) -> None:
    _curves(figures, look, axes, lambda row: 100 * row.miss_rate, (True,))
    axes.set(xlabel="static rows of the head", ylabel="misses, % of the tokens", ylim=(0, None))
    axes.legend(fontsize=9)


def _curves(
    figures: Figures, look: Look, axes: Any, value: Callable[[Row], float | None], modes: tuple[bool, ...]
) -> None:
    for verified in modes:
        rows = sorted(_sized(figures, verified), key=lambda row: row.static_rows)
        points = [(row.static_rows, found) for row in rows if (found := value(row)) is not None]
        if points:
            color, label = (look.blue, "exact") if verified else (look.orange, "approximate")
            _line(axes, points, color, label)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.static_rows for verified in modes for row in _sized(figures, verified)})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30, ha="right")
    axes.minorticks_off()


def _line(axes: Any, points: Sequence[tuple[int, float]], color: str, label: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=label)


def _acceptance(figures: Figures, look: Look, axes: Any) -> None:
    for row, color in zip(figures.drafting, _colors(look), strict=False):
        positions = range(1, 1 + max((each.length for each in row.draft_lengths), default=0))
        shares = [(at, 100 * right) for at in positions if (right := row.acceptance(at)) is not None]
        _line(axes, shares, color, row.name)
    axes.set(xlabel="position in the draft", ylabel="right, % of those reached", ylim=(0, None))
    axes.legend(fontsize=9)


def _draft_speed(figures: Figures, look: Look, axes: Any) -> None:
    fixed: dict[str, list[tuple[int, float]]] = {}
    colors = _colors(look)
    for row in figures.drafting:
        length = parse_variant(row.name).draft_tokens
        if length is None:
            points = [(each.length, each.tokens_per_s) for each in row.draft_lengths if each.seconds]
            _line(axes, points, next(colors), f"{row.name}: reads of this length")
        elif row.tokens_per_s:
            fixed.setdefault(row.name.partition("@")[0], []).append((length, row.tokens_per_s))
    for name, points in fixed.items():
        _line(axes, sorted(points), next(colors), f"{name}@N: whole answers")
    axes.set(xlabel="drafted tokens of a read", ylabel="tokens/s", ylim=(0, None))
    axes.legend(fontsize=9)


def _colors(look: Look) -> Iterator[str]:
    """A color for each line: the look's own, and then matplotlib's."""
    return chain((look.blue, look.orange), (f"C{index}" for index in count(2)))


def _any_drafted(figures: Figures) -> bool:
    return any(row.drafted for row in figures.drafting)


def _plain(figures: Figures) -> Sequence[Row]:
    """Rows that get a bar; variants with another number of rows get curves instead."""
    return [row for row in figures.rows if parse_variant(row.name).rows is None]


def _sized(figures: Figures, verified: bool) -> list[Row]:
    """Rows that differ only in the number of static rows."""
    return [
        row
        for row in figures.rows
        if row.data["head"] == "prealloc"
        and row.data["store"] == "lmdb"
        and row.verified == verified
        and undrafted(row.name) is None
    ]


def _any_sized(figures: Figures) -> bool:
    return bool(_sized(figures, True) or _sized(figures, False))


_PICTURES: tuple[tuple[str, str, Callable[[Figures], bool], Callable[[Figures, Look, Any], None]], ...] = (
    ("memory", "memory by component", lambda figures: bool(_plain(figures)), _memory),
    ("latency", "time per request: prefill and decode", lambda figures: bool(_plain(figures)), _latency),
    ("speed", "tokens/s by size of the vocabulary", _any_sized, _speed),
    ("acceptance", "drafted tokens that were right, by position", _any_drafted, _acceptance),
    ("draft-speed", "tokens/s by length of the draft", _any_drafted, _draft_speed),
    ("misses", "misses by size of the vocabulary", lambda f: bool(_sized(f, True)), _misses),
)
