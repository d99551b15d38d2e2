"""The report of a benchmark: a function of its results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vt_core.measure.bootstrap import Floats
from vt_core.measure.figures import DraftLength, Figures, Latency, Row
from vt_core.measure.machine import cores_text, machine_text
from vt_core.measure.report import NONE, Report, Table, megabytes, number, span
from vt_core.measure.variants import FULL, STOCK, UNDRAFTED, undrafted

Figure = Callable[[Row], float | None]
Terms = Callable[[Row], Floats]


def bench_report(results: Mapping[str, Any]) -> Report:
    """Build the report of a benchmark's results."""
    figures = Figures(results)
    kinds = [_latency, _throughput, _memory]
    if any(row.limit_bytes is not None for row in figures.rows):
        kinds.append(_limited_memory)
    kinds += [_vocabulary, _exactness]
    if figures.drafting:
        kinds += [_drafting, _draft_lengths]
    return Report(
        title=_title(figures),
        tables=[kind(figures) for kind in kinds],
        warnings=_warnings(figures),
        cards=_cards(figures),
        claims=[_claim(figures, row) for row in figures.rows if row is not figures.base],
        facts=_facts(figures),
    )


def _title(figures: Figures) -> str:
    model, settings = figures.results["model"], figures.results["settings"]
    dtypes = " and ".join(dict.fromkeys(row.data["dtype"] for row in figures.rows))
    name = model["name"] + (" (random weights)" if figures.random_weights else "")
    quantized = f", vt in {settings['quantize']}" if settings.get("quantize") else ""
    return f"{name}, {settings['backend']}, {dtypes}{quantized}"


def _warnings(figures: Figures) -> list[str]:
    found = []
    if figures.random_weights:
        found.append(
            "The weights are random, with the shapes of the real model: the figures are about speed and "
            "memory, not about text. Such a model repeats a few tokens, so exact decoding misses little, as "
            "it would on a text that the vocabulary covers."
        )
    few = [row.name for row in figures.rows if not figures.suffices(row)]
    if few:
        n = min(row.n for row in figures.rows)
        found.append(
            f"Few prompts ({n}, fewer than {figures.minimum}): other prompts may give quite different ratios"
            + ("." if n > 1 else ", and one prompt gives no interval.")
        )
    machine = figures.results["machine"]
    if machine["load"] > 0.5 * machine["cores"]:
        found.append(
            f"The machine was busy (load {machine['load']} at the start, {cores_text(machine)}), so times "
            "are too long. The variants took turns, so ratios are affected less."
        )
    return found


def _facts(figures: Figures) -> list[tuple[str, str]]:
    results = figures.results
    model, settings = results["model"], results["settings"]
    tables = "one table" if model["tied"] else "separate embedding and head"
    counts = " or ".join(map(str, sorted({row.n for row in figures.rows})))
    loads = "all variants in memory at once"
    if settings["rounds"] > 1:
        loads = f"each variant loaded {settings['rounds']} times"
    return [
        ("command", f"`{results['command']}`"),
        ("machine", f"{machine_text(results['machine'])}; load {results['machine']['load']} at the start"),
        ("device", ", ".join(dict.fromkeys(row.data["device"] for row in figures.rows))),
        ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
        (
            "model",
            f"{model['type']}, {model['weights']} weights, {model['vocab_rows']:,} rows of "
            f"{model['hidden']:,} in {tables}; {megabytes(model['table_bytes'])} MB of tables and "
            f"{megabytes(model['body_bytes'])} MB of other weights, stored as {model['stored_dtype']}"
            + (", quantized" if model["quantized"] else ""),
        ),
        (
            "prompts",
            f"{counts} from {settings['prompts']}; up to {settings['max_tokens']} tokens each, greedy; every "
            f"prompt with all variants in turn, in shuffled order (seed {settings['seed']}), after a "
            f"warm-up; one process per variant, {loads}",
        ),
        (
            "intervals",
            "95 % of the ratios when the prompts are resampled, the same for both sides of a ratio",
        ),
        ("date", results["created"]),
    ]


def _cards(figures: Figures) -> list[tuple[str, str]]:
    """Main figures of exact decoding with the default head."""
    row = figures.row("prealloc")
    if row is None or row is figures.base:
        return []
    base = figures.base.name
    kinds: list[tuple[str, Figure]] = [
        ("tokens/s", _speed),
        ("peak memory of the process", _peak),
        ("allocator peak", _allocator),
        ("bytes of the vocabulary", _resident),
    ]
    found = [
        (f"{ratio:.2f} ×", f"{what} of {base}")
        for what, figure in kinds
        if (ratio := figures.ratio(row, figure)) is not None
    ]
    if row.same_texts is not None and not figures.random_weights:
        found.append((f"{row.same_texts} / {row.n}", "texts identical to the full head's"))
    return found


def _claim(figures: Figures, row: Row) -> str:
    """One sentence that compares a row with the base."""
    base = figures.base.name
    kinds: list[tuple[str, Figure, Terms | None]] = [
        (f"the tokens/s of `{base}`", _speed, lambda each: each.speed_terms),
        ("its time to the first token", lambda each: _mean(each.ttft), lambda each: each.ttft_terms),
        ("its peak memory", _peak, None),
        ("its allocator peak", _allocator, None),
    ]
    parts = []
    for what, figure, terms in kinds:
        if (ratio := figures.ratio(row, figure)) is not None:
            interval = None if terms is None else figures.interval(row, terms)
            parts.append(f"{ratio:.2f} × {what}" + (f" ({span(*interval)})" if interval else ""))
    if row.same_texts is not None and not figures.random_weights and row.name != FULL:
        parts.append(f"the text of `{FULL}` in {row.same_texts} of {row.n}")
    return f"`{row.name}`: {', '.join(parts)}."


def _latency(figures: Figures) -> Table:
    kinds: list[tuple[Callable[[Row], Latency | None], Terms]] = [
        (lambda row: row.ttft, lambda row: row.ttft_terms),
        (lambda row: row.tpot, lambda row: row.tpot_terms),
        (lambda row: row.e2e, lambda row: row.e2e_terms),
    ]

    def cells(row: Row, kind: Callable[[Row], Latency | None], terms: Terms) -> tuple[str, str]:
        return _quartet(kind(row)), _ratio(figures, row, lambda each: _mean(kind(each)), terms)

    return Table(
        "Latency",
        "Milliseconds: mean / P50 / P90 / P99. TTFT: from the tokenized prompt to the first token, including "
        "construction of the head. TPOT: time per token after the first. ×: ratio of the means to "
        f"{figures.base.name}, with its interval.",
        ["variant", "n", "TTFT", "×", "TPOT", "×", "whole request", "×"],
        [
            [row.name, str(row.n), *(cell for kind in kinds for cell in cells(row, *kind))]
            for row in figures.rows
        ],
    )


def _throughput(figures: Figures) -> Table:
    columns = ["variant", "n", "tokens/s", "×", "requests/s", "×"]
    note = (
        "Tokens/s: tokens after the first divided by the time after the first. Requests run one at a time. "
        f"×: ratio to {figures.base.name}, with its interval."
    )
    characters = any(row.characters_per_s is not None for row in figures.rows)
    if characters:
        columns.append("characters/s")
        note += " Characters/s: characters of the texts divided by the time of the whole requests."
    rows = []
    for row in figures.rows:
        cells = [
            row.name,
            str(row.n),
            number(row.tokens_per_s),
            _ratio(figures, row, _speed, lambda each: each.speed_terms),
            number(row.requests_per_s),
            _ratio(figures, row, lambda each: each.requests_per_s, lambda each: each.e2e_terms[:, ::-1]),
        ]
        rows.append([*cells, number(row.characters_per_s)] if characters else cells)
    return Table("Throughput", note, columns, rows)


def _memory(figures: Figures) -> Table:
    columns = ["variant", "n", "process", "×", "anonymous", "above idle", "×"]
    allocated = any(row.allocator_bytes is not None for row in figures.rows)
    limited = any(row.limit_bytes is not None for row in figures.rows)
    note = (
        "MB. Process: peak resident memory, including loading; anonymous: the part that no file backs; above "
        "idle: without what the process held after importing the frameworks."
    )
    if allocated:
        columns += ["allocator", "×"]
        note += " Allocator: peak of the device's allocator."
    if limited:
        columns += ["suffices", "×"]
        note += (
            " Suffices: the smallest memory, page cache included, in which the variant kept 80 % of its "
            "speed; found by bisection, each run in a fresh process, from a cold page cache, with "
            f"{max(row.limit_prompts for row in figures.rows)} prompts."
        )

    def cells(row: Row) -> list[str]:
        found = [*pair(row, _peak), megabytes(row.anonymous_bytes), *pair(row, _above_idle)]
        found += pair(row, _allocator) if allocated else []
        return found + (pair(row, _limit) if limited else [])

    def pair(row: Row, figure: Callable[[Row], int | None]) -> list[str]:
        return [megabytes(figure(row)), _ratio(figures, row, figure)]

    return Table("Peak memory", note, columns, [[row.name, str(row.n), *cells(row)] for row in figures.rows])


def _limited_memory(figures: Figures) -> Table:
    """Speed in less memory than the variant uses when it is unlimited."""

    def trials(row: Row) -> str:
        found = sorted(row.data["limit"]["trials"])
        return "; ".join(f"{megabytes(limit)}: {number(speed) if speed else 0}" for limit, speed in found)

    return Table(
        "Speed in limited memory",
        "Tokens/s in the runs of that search: without a limit, and under each limit in MB, page cache "
        "included. 0: the run was killed, or took four times as long as without a limit.",
        ["variant", "without a limit", "MB: tokens/s"],
        [
            [row.name, number(row.data["limit"]["tokens_per_s"]), trials(row)]
            for row in figures.rows
            if row.limit_bytes is not None
        ],
    )


def _vocabulary(figures: Figures) -> Table:
    whole = figures.results["model"]["vocab_rows"]
    return Table(
        "Vocabulary",
        f"Rows of the head: static, and those of prompts and rescues (mean). Kept: their share of {whole:,}. "
        "Resident: MB of these rows on the device, with spare capacity, in the float type of the run. Host: "
        "MB of tables held in host memory.",
        ["variant", "static", "dynamic", "kept", "resident", "×", "host"],
        [
            [
                row.name,
                f"{row.static_rows:,}",
                f"{row.dynamic_rows:.0f}" if row.static_rows < whole else NONE,
                f"{min(1, (row.static_rows + row.dynamic_rows) / whole):.2%}",
                megabytes(row.resident_bytes),
                _ratio(figures, row, _resident),
                megabytes(row.host_bytes),
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
        if not row.verified or not row.verifications:
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
        f"Same text: requests with exactly the ids of {FULL}. Misses: tokens that the full head replaced, "
        "and their share of all tokens. Wasted: steps rolled back after a miss. Checks: scans of the full "
        "head, tokens per scan, and their share of the time."
    )
    if figures.random_weights:
        note += " With random weights there is no text to compare, and the misses say nothing of real ones."
    return Table(
        "Exactness",
        note,
        ["variant", "same text", "tokens", "misses", "share", "wasted", "checks", "tokens each", "time"],
        [[row.name, same(row), f"{row.tokens:,}", *checks(row)] for row in figures.rows],
    )


def _drafting(figures: Figures) -> Table:
    def cells(row: Row) -> list[str]:
        ratios = [
            NONE
            if other is None or not (row.tokens_per_s and other.tokens_per_s)
            else f"{row.tokens_per_s / other.tokens_per_s:.2f}"
            for other in (figures.row(undrafted(row.name) or STOCK), figures.row(STOCK))
        ]
        share = f"{row.accepted / row.drafted:.0%}" if row.drafted else NONE
        counts = [f"{row.reads:,}", f"{row.drafted:,}", f"{row.accepted:,}", share]
        time = f"{row.draft_s / sum(row.data['e2e_s']):.1%}"
        return [row.name, number(row.tokens_per_read), *counts, time, *ratios]

    return Table(
        "Drafting",
        "Reads: passes of the model after the prompts. Accepted: drafted tokens that the head in use chose "
        "too, and their share. Time: share of the requests' time spent on drafting. ×: ratio of tokens/s to "
        f"{' and '.join(f'{plain} (for {name})' for name, plain in UNDRAFTED.items())}, and to {STOCK}. "
        "@N: N tokens are drafted where so many are proposed; without it, as many as pay.",
        [
            "variant",
            "tokens a read",
            "reads",
            "drafted",
            "accepted",
            "share",
            "time",
            "× undrafted",
            "× stock",
        ],
        [cells(row) for row in figures.drafting],
    )


def _draft_lengths(figures: Figures) -> Table:
    def cells(row: Row, each: DraftLength) -> list[str]:
        right = row.acceptance(each.length) if each.length else None
        plain = row.draft_lengths[0]
        known = plain.length == 0 and plain.seconds and each.seconds
        return [
            row.name,
            str(each.length),
            f"{each.reads:,}",
            NONE if right is None else f"{right:.0%}",
            number(each.tokens / each.reads),
            number(1e3 * each.seconds / each.reads),
            f"{each.tokens_per_s / plain.tokens_per_s:.2f}" if known else NONE,
        ]

    return Table(
        "Length of drafts",
        "Reads by the number of tokens drafted. Right: share of the drafted tokens at this position that "
        "were right, where those before them were. Ms: of a read, verification not included. ×: ratio of the "
        "tokens per second of such reads to those without a draft.",
        ["variant", "length", "reads", "right", "tokens a read", "ms", "×"],
        [cells(row, each) for row in figures.drafting for each in row.draft_lengths],
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


def _ratio(figures: Figures, row: Row, figure: Figure, terms: Terms | None = None) -> str:
    """Ratio to the base, with its interval where ``terms`` are given."""
    if row is figures.base:
        return "1"
    ratio = figures.ratio(row, figure)
    if ratio is None:
        return NONE
    interval = None if terms is None else figures.interval(row, terms)
    return f"{ratio:.2f}" + (f" ({span(*interval)})" if interval else "")


def _quartet(latency: Latency | None) -> str:
    if latency is None:
        return NONE
    return " / ".join(number(1e3 * value) for value in (latency.mean, latency.p50, latency.p90, latency.p99))
