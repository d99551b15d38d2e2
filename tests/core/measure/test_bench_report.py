"""Figures and reports follow from the results."""

from __future__ import annotations

import numpy as np
import pytest

from tests.core.measure.made_up import drafting_row, results, row
from vt_core.measure.bench_report import bench_report
from vt_core.measure.figures import Figures, Latency
from vt_core.measure.report import markdown


def report(made) -> str:
    return markdown(bench_report(made))


def table(text: str, title: str) -> dict[str, dict[str, str]]:
    """Cells of a table, by variant and column; of two columns with one name the first."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *rows = cells
    return {each[0]: dict(reversed(list(zip(head, each, strict=True)))) for each in rows}


def claims(text: str) -> dict[str, str]:
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("- `")}


def test_latencies_are_means_and_percentiles():
    seconds = [i / 100 for i in range(101)]
    found = Latency.of(seconds)
    assert np.allclose([found.mean, found.p50, found.p90, found.p99], [0.5, 0.5, 0.9, 0.99])
    assert Latency.of([]) is None


def test_figures():
    figures = Figures(results())
    exact = figures.row("prealloc")
    assert exact.tokens_per_s == pytest.approx(40) and figures.base.tokens_per_s == pytest.approx(20)
    assert figures.ratio(exact, lambda each: each.tokens_per_s) == pytest.approx(2)
    assert figures.interval(exact, lambda each: each.speed_terms) == pytest.approx((2, 2))
    assert exact.requests_per_s == pytest.approx(1 / 0.6)
    assert exact.tpot.mean == pytest.approx(0.025) and exact.ttft.p99 == pytest.approx(0.1)
    assert (exact.misses, exact.wasted_steps, exact.verifications) == (20, 60, 40)
    assert exact.miss_rate == pytest.approx(1 / 11) and exact.verify_share == pytest.approx(0.1)
    assert exact.dynamic_rows == 1000 and exact.above_idle_bytes == 400_000_000


def test_speed_is_over_all_requests_and_its_interval_holds_the_ratio():
    few_then_many = row("full", 20, generated_tokens=[2] * 10 + [101] * 10, decode_s=[0.2] * 10 + [5.0] * 10)
    figures = Figures(results(row("stock", 20), few_then_many))
    full = figures.row("full")
    assert full.tokens_per_s == pytest.approx(1010 / 52)
    low, high = figures.interval(full, lambda each: each.speed_terms)
    assert low < full.tokens_per_s / 20 < high < 1.1


def test_request_of_one_token_has_no_time_per_token():
    one = row("full", 2, generated_tokens=[1, 11], decode_s=[0.0, 0.5])
    figures = Figures(results(row("stock", 2), one))
    assert figures.row("full").tpot.mean == pytest.approx(0.05)
    none = row("full", 2, generated_tokens=[1, 1], decode_s=[0.0, 0.0])
    text = report(results(row("stock", 2), none, minimum=2))
    assert table(text, "Latency")["full"]["TPOT"] == "–"
    assert table(text, "Throughput")["full"]["tokens/s"] == "–"


def test_tables_show_figures_and_ratios_to_stock():
    text = report(results())
    latency = table(text, "Latency")
    assert latency["stock"]["×"] == "1" and latency["prealloc"]["TTFT"] == "100 / 100 / 100 / 100"
    assert latency["prealloc"]["TPOT"] == "25.0 / 25.0 / 25.0 / 25.0"
    assert table(text, "Throughput")["prealloc"] == {
        "variant": "prealloc",
        "n": "20",
        "tokens/s": "40.0",
        "×": "2.00 (2.00 to 2.00)",
        "requests/s": "1.67",
        "characters/s": "70.0",
    }
    assert table(text, "Peak memory")["prealloc"]["process"] == "600"
    assert table(text, "Peak memory")["prealloc"]["×"] == "0.60"
    assert table(text, "Vocabulary")["prealloc"]["kept"] == "10.00%"
    assert table(text, "Vocabulary")["prealloc"]["×"] == "0.08"
    exactness = table(text, "Exactness")
    assert exactness["prealloc"]["same text"] == "20 of 20" and exactness["prealloc"]["share"] == "9.09%"
    assert exactness["prealloc-approximate"]["misses"] == exactness["full"]["misses"] == "–"
    assert claims(text)["prealloc"] == (
        "- `prealloc`: 2.00 × the tokens/s of `stock` (2.00 to 2.00), 1.00 × its time to the first token "
        "(1.00 to 1.00), 0.60 × its peak memory, the text of `full` in 20 of 20."
    )


def test_drafting_is_compared_with_stock_and_with_no_drafts():
    text = report(results(row("stock", 20), row("prealloc", 20), drafting_row()))
    assert table(text, "Drafting")["draft"] == {
        "variant": "draft",
        "tokens a read": "2.00",
        "reads": "100",
        "drafted": "160",
        "accepted": "100",
        "share": "62%",
        "time": "1.0%",
        "× undrafted": "2.00",
        "× stock": "4.00",
    }
    lines = [line for line in text.split("## Length of drafts")[1].splitlines() if line.startswith("| draft")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["draft", "0", "20", "–", "1.00", "20.0", "1.00"]
    assert cells[1] == ["draft", "2", "80", "25%", "2.25", "25.0", "1.80"]
    assert "## Drafting" not in report(results())


def test_acceptance_counts_the_drafts_that_reached_a_position():
    found = Figures(results(drafting_row())).row("draft")
    assert found.acceptance(1) == 1 and found.acceptance(2) == 0.25 and found.acceptance(3) is None


def test_full_head_that_drafts_is_not_verified():
    figures = Figures(results(row("full", 20), drafting_row("full+draft", head="full")))
    assert not figures.row("full+draft").verified
    assert table(report(figures.results), "Drafting")["full+draft"]["× stock"] == "–"


def test_texts_that_differ_are_counted():
    differs = row("prealloc-approximate", 20, same_tokens=[-1] * 17 + [0, 3, 10])
    text = report(results(row("stock", 20), row("full", 20), differs))
    assert table(text, "Exactness")["prealloc-approximate"]["same text"] == "17 of 20"
    assert "the text of `full` in 17 of 20" in claims(text)["prealloc-approximate"]


def test_few_prompts_show_ratios_and_one_warning():
    text = report(results(row("stock", 3), row("full", 3), row("prealloc", 3)))
    assert claims(text)["prealloc"].startswith("- `prealloc`: 2.00 × the tokens/s of `stock` (2.00 to 2.00)")
    assert table(text, "Throughput")["prealloc"]["×"] == "2.00 (2.00 to 2.00)"
    assert table(text, "Peak memory")["prealloc"]["×"] == "0.60"
    assert text.lower().count("few") == 2  # "Few prompts (3, fewer than 20)"
    assert "> **Few prompts (3, fewer than 20): other prompts may give quite different ratios.**" in text


def test_one_prompt_shows_ratios_without_interval():
    text = report(results(row("stock", 1), row("prealloc", 1)))
    assert table(text, "Throughput")["prealloc"]["×"] == "2.00"
    assert "other prompts may give quite different ratios, and one prompt gives no interval." in text


def test_enough_prompts_give_no_warning():
    assert "Few prompts" not in report(results())


def test_random_weights_are_marked_and_have_no_texts():
    text = report(results(weights="random"))
    assert text.startswith("# some-model (random weights), torch, float32\n\n> **The weights are random")
    assert all("text of" not in claim for claim in claims(text).values())
    assert {cells["same text"] for cells in table(text, "Exactness").values()} == {"–"}
    assert "random weights" not in report(results())


def test_busy_machine_is_reported():
    busy = results()
    busy["machine"] = busy["machine"] | {"load": 1.5}
    assert "**The machine was busy (load 1.5 at the start, 2 cores)" in report(busy)
    assert "busy" not in report(results())


def test_full_head_is_the_base_without_stock():
    text = report(results(row("full", 20), row("prealloc", 20, same_tokens=None)))
    assert (
        "of `full`" in claims(text)["prealloc"] and table(text, "Exactness")["prealloc"]["same text"] == "–"
    )


def test_allocator_and_limit_search_have_columns():
    memory = row("stock", 20)["memory"] | {"allocator_bytes": 500_000_000}
    trials = [[800_000_000, 11.04], [500_000_000, 0.0]]
    limit = {"limit_bytes": 800_000_000, "prompts": 2, "tokens_per_s": 12.5, "trials": trials}
    stock = row("stock", 20, memory=memory, limit=limit)
    vt = row(
        "full",
        20,
        memory=memory | {"allocator_bytes": 250_000_000},
        limit=limit | {"limit_bytes": 400_000_000},
    )
    text = report(results(stock, vt, row("prealloc", 20)))
    found = table(text, "Peak memory")
    assert (found["full"]["allocator"], found["full"]["suffices"]) == ("250", "400")
    assert found["prealloc"]["suffices"] == "–" and "from a cold page cache, with 2 prompts." in text
    tries = table(text, "Speed in limited memory")
    assert set(tries) == {"stock", "full"}
    assert tries["stock"] | {"without a limit": "12.5", "MB: tokens/s": "500: 0; 800: 11.0"} == tries["stock"]
    assert "limited memory" not in report(results())
    assert "allocator" not in report(results()) and "uffices" not in report(results())
