"""What a report says: its tables and sentences, as texts, the same for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vt_core.measure.bench.figures import Figures, Latency, Row
from vt_core.measure.bench.machine import cores_text, machine_text
from vt_core.measure.bench.variants import FULL

NONE = "–"
TOO_FEW = "too few prompts"


@dataclass(frozen=True)
class Table:
    """A table with its title and a sentence on how to read it."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def title(figures: Figures) -> str:
    model, settings = figures.results["model"], figures.results["settings"]
    dtypes = " and ".join(dict.fromkeys(row.data["dtype"] for row in figures.rows))
    name = model["name"] + (" (random weights)" if figures.random_weights else "")
    quantized = f", vt in {settings['quantize']}" if settings.get("quantize") else ""
    return f"{name}, {settings['backend']}, {dtypes}{quantized}"


def warnings(figures: Figures) -> list[str]:
    """What must be read before any figure."""
    found = []
    if figures.random_weights:
        found.append(
            "Random weights of the real model's shapes: the figures are of speed and memory, and say nothing "
            "of any text. Such a model writes a few tokens over and over, so exact decoding misses little: "
            "its figures are those of a text that the vocabulary covers."
        )
    few = [row.name for row in figures.rows if not figures.suffices(row)]
    if few:
        found.append(
            f"Too few prompts for any claim (fewer than {figures.minimum}): {', '.join(few)}. "
            "Ratios of these rows are left out."
        )
    machine = figures.results["machine"]
    if machine["load"] > 0.5 * machine["cores"]:
        found.append(
            f"The machine was busy (load {machine['load']} at the start, measured on {cores_text(machine)}): "
            "seconds are too long. Variants ran in turn, so their ratios suffer less."
        )
    return found


def facts(figures: Figures) -> list[tuple[str, str]]:
    """What was measured, with what, on what."""
    results = figures.results
    model, settings = results["model"], results["settings"]
    tables = "one table" if model["tied"] else "separate embedding and head"
    counts = sorted({row.n for row in figures.rows})
    together = "all variants loaded" if settings["rounds"] == 1 else f"{settings['rounds']} loads of each"
    return [
        ("command", results["command"]),
        ("machine", f"{machine_text(results['machine'])}; load {results['machine']['load']} at the start"),
        ("device", ", ".join(dict.fromkeys(row.data["device"] for row in figures.rows))),
        ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
        (
            "model",
            f"{model['type']}, {model['weights']} weights, {model['vocab_rows']:,} rows of "
            f"{model['hidden']:,} in {tables}, {_megabytes(model['table_bytes'])} MB of tables beside "
            f"{_megabytes(model['body_bytes'])} MB, stored as {model['stored_dtype']}"
            + (", quantized" if model["quantized"] else ""),
        ),
        (
            "prompts",
            f"{' or '.join(map(str, counts))} from {settings['prompts']}, up to {settings['max_tokens']} "
            f"tokens of text, greedy; every prompt with all variants in turn, in shuffled order (seed "
            f"{settings['seed']}), after a warm-up; a process each, {together}",
        ),
        ("measured", results["created"]),
    ]


def cards(figures: Figures) -> list[tuple[str, str]]:
    """The few figures of exact decoding with the default head that a reader wants first, where they hold."""
    row = figures.row("prealloc")
    if row is None or row is figures.base or not figures.suffices(row):
        return []
    base = figures.base.name
    found = [
        (f"{ratio:.2f} ×", f"{what} of {base}")
        for what, figure in (
            ("tokens/s", _speed),
            ("peak memory of the process", _peak),
            ("allocator peak", _allocator),
            ("bytes of the vocabulary", _resident),
        )
        if (ratio := figures.ratio(row, figure)) is not None
    ]
    if row.same_texts is not None and not figures.random_weights:
        found.append((f"{row.same_texts} / {row.n}", "texts are the full head's"))
    return found


def claims(figures: Figures) -> list[str]:
    """A sentence for each variant that others are compared with the base in; or why there is none."""
    return [_claim(figures, row) for row in figures.rows if row is not figures.base]


def _claim(figures: Figures, row: Row) -> str:
    base = figures.base.name
    if not figures.suffices(row):
        return f"`{row.name}`: {TOO_FEW} ({row.n}, and a claim needs {figures.minimum})."
    parts = []
    speed = figures.ratio(row, _speed)
    if speed is not None:
        interval = figures.speed_interval(row)
        spread = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        parts.append(f"{speed:.2f} × the tokens/s of `{base}`{spread}")
    parts += [
        f"{ratio:.2f} × its {what}"
        for what, figure in (
            ("time to the first token", lambda each: _mean(each.ttft)),
            ("peak memory", _peak),
            ("allocator peak", _allocator),
        )
        if (ratio := figures.ratio(row, figure)) is not None
    ]
    if row.same_texts is not None and not figures.random_weights and row.name != FULL:
        parts.append(f"the text of `{FULL}` in {row.same_texts} of {row.n}")
    return f"`{row.name}`: {', '.join(parts)}."


def tables(figures: Figures) -> list[Table]:
    searched = [_little_memory] if any(row.limit_bytes is not None for row in figures.rows) else []
    kinds = (_latency, _throughput, _memory, *searched, _vocabulary, _exactness)
    return [table(figures) for table in kinds]


def _latency(figures: Figures) -> Table:
    kinds: list[Callable[[Row], Latency | None]] = [
        lambda row: row.ttft,
        lambda row: row.tpot,
        lambda row: row.e2e,
    ]

    def cells(row: Row, kind: Callable[[Row], Latency | None]) -> tuple[str, str]:
        return _quartet(kind(row)), _ratio(figures, row, lambda each: _mean(kind(each)))

    return Table(
        "Latency",
        "Milliseconds: mean / P50 / P90 / P99. TTFT: from the tokenized prompt to the first token, the "
        "head's construction included; TPOT: each token after it; ×: means "
        f"to {figures.base.name}'s.",
        ["variant", "n", "TTFT", "×", "TPOT", "×", "whole request", "×"],
        [
            [row.name, str(row.n), *(cell for kind in kinds for cell in cells(row, kind))]
            for row in figures.rows
        ],
    )


def _throughput(figures: Figures) -> Table:
    def interval(row: Row) -> str:
        found = figures.speed_interval(row) if figures.suffices(row) and row is not figures.base else None
        return NONE if found is None else f"{found[0]:.2f} to {found[1]:.2f}"

    return Table(
        "Throughput",
        "Tokens after the first over the time after the first; requests one at a time; the interval holds 95 "
        "of 100 ratios when the prompts are drawn again in pairs.",
        ["variant", "n", "tokens/s", "×", "95 %", "requests/s", "×"],
        [
            [
                row.name,
                str(row.n),
                _number(row.tokens_per_s),
                _ratio(figures, row, _speed),
                interval(row),
                _number(row.requests_per_s),
                _ratio(figures, row, lambda each: each.requests_per_s),
            ]
            for row in figures.rows
        ],
    )


def _memory(figures: Figures) -> Table:
    columns = ["variant", "n", "process", "×", "of it anonymous", "above idle", "×"]
    allocated = any(row.allocator_bytes is not None for row in figures.rows)
    limited = any(row.limit_bytes is not None for row in figures.rows)
    note = (
        "MB at the most: of the process, loading included; above idle: without what the process held when "
        "the frameworks were imported."
    )
    if allocated:
        columns += ["allocator", "×"]
        note += " Allocator: the device's."
    if limited:
        columns += ["suffices", "×"]
        note += (
            " Suffices: the smallest memory, page cache included, in which the variant kept 80 % of its "
            "speed; found by bisection, each try in a fresh process, from a cold page cache, with "
            f"{max(row.limit_prompts for row in figures.rows)} prompts."
        )

    def cells(row: Row) -> list[str]:
        found = [*pair(row, _peak), _megabytes(row.anonymous_bytes), *pair(row, _above_idle)]
        found += pair(row, _allocator) if allocated else []
        return found + (pair(row, _limit) if limited else [])

    def pair(row: Row, figure: Callable[[Row], int | None]) -> list[str]:
        return [_megabytes(figure(row)), _ratio(figures, row, figure)]

    return Table("Peak memory", note, columns, [[row.name, str(row.n), *cells(row)] for row in figures.rows])


def _little_memory(figures: Figures) -> Table:
    """What a variant does in less memory than it takes when it is given all."""

    def tries(row: Row) -> list[tuple[int, float]]:
        return sorted(row.data["limit"]["trials"])

    return Table(
        "Speed in little memory",
        "Tokens/s in the tries of that search: without a limit, and by the MB that each was given, page "
        "cache included. 0: it was killed, or took four times as long as without a limit.",
        ["variant", "without a limit", "MB: tokens/s"],
        [
            [
                row.name,
                _number(row.data["limit"]["tokens_per_s"]),
                "; ".join(
                    f"{_megabytes(limit)}: {_number(speed) if speed else 0}" for limit, speed in tries(row)
                ),
            ]
            for row in figures.rows
            if row.limit_bytes is not None
        ],
    )


def _vocabulary(figures: Figures) -> Table:
    whole = figures.results["model"]["vocab_rows"]
    return Table(
        "Vocabulary",
        f"Rows of the head: static, and those of prompts and rescues (mean); kept: their share of {whole:,}. "
        "Resident: MB of these rows on the device, with spare capacity, in the run's float type. Host: MB of "
        "tables held in memory beside it.",
        ["variant", "static", "dynamic", "kept", "resident", "×", "host"],
        [
            [
                row.name,
                f"{row.static_rows:,}",
                f"{row.dynamic_rows:.0f}" if row.static_rows < whole else NONE,
                f"{min(1, (row.static_rows + row.dynamic_rows) / whole):.2%}",
                _megabytes(row.resident_bytes),
                _ratio(figures, row, _resident, always=True),
                _megabytes(row.host_bytes),
            ]
            for row in figures.rows
        ],
    )


def _exactness(figures: Figures) -> Table:
    def same(row: Row) -> str:
        if row.same_texts is None or figures.random_weights:
            return NONE
        return f"{row.same_texts} of {row.n}"

    def checks(row: Row) -> list[str]:
        if not row.verified:
            return [NONE] * 6
        return [
            f"{row.misses:,}",
            f"{row.miss_rate:.2%}",
            f"{row.wasted_steps:,}",
            f"{row.verifications:,}",
            f"{row.tokens / row.verifications:.1f}",
            f"{row.verify_share:.0%}",
        ]

    note = (
        f"Same text: requests with exactly the ids of {FULL}. Misses: tokens that the full head put in place "
        "of others; wasted: steps behind them; checks: readings of the full head, the tokens of each, and "
        "their share of the time."
    )
    if figures.random_weights:
        note += " With random weights there is no text to compare, and the misses are theirs alone."
    return Table(
        "Exactness",
        note,
        ["variant", "same text", "tokens", "misses", "a token", "wasted", "checks", "tokens each", "time"],
        [[row.name, same(row), f"{row.tokens:,}", *checks(row)] for row in figures.rows],
    )


def _mean(latency: Latency | None) -> float | None:
    return None if latency is None else latency.mean


def _speed(row: Row) -> float | None:
    return row.tokens_per_s


def _resident(row: Row) -> int:
    return row.resident_bytes


def _peak(row: Row) -> int:
    return row.peak_bytes


def _above_idle(row: Row) -> int:
    return row.above_idle_bytes


def _allocator(row: Row) -> int | None:
    return row.allocator_bytes


def _limit(row: Row) -> int | None:
    return row.limit_bytes


def _ratio(figures: Figures, row: Row, figure: Callable[[Row], float | None], *, always: bool = False) -> str:
    """A ratio to the base; what was counted and not measured holds for few prompts too (``always``)."""
    if row is figures.base:
        return "1"
    if not always and not figures.suffices(row):
        return TOO_FEW
    ratio = figures.ratio(row, figure)
    return NONE if ratio is None else f"{ratio:.2f}"


def _quartet(latency: Latency | None) -> str:
    if latency is None:
        return NONE
    return " / ".join(_number(1e3 * value) for value in (latency.mean, latency.p50, latency.p90, latency.p99))


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _megabytes(size: int | None) -> str:
    return NONE if size is None else _number(size / 1e6) if size else "0"
