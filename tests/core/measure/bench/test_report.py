"""Figures and reports are functions of the results."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.core.measure.bench.results import results, row
from vt_core.errors import DataError
from vt_core.measure.bench.figures import Figures, Latency
from vt_core.measure.bench.report import report


def table(text: str, title: str) -> dict[str, dict[str, str]]:
    """Cells of a table of a report, by variant and column; of two columns of one name the first."""
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


def test_figures_are_what_can_be_computed_in_the_head():
    figures = Figures(results())
    exact = figures.row("prealloc")
    assert exact.tokens_per_s == pytest.approx(40) and figures.base.tokens_per_s == pytest.approx(20)
    assert figures.ratio(exact, lambda each: each.tokens_per_s) == pytest.approx(2)
    assert figures.speed_interval(exact) == pytest.approx((2, 2))
    assert exact.requests_per_s == pytest.approx(1 / 0.6)
    assert exact.tpot.mean == pytest.approx(0.025) and exact.ttft.p99 == pytest.approx(0.1)
    assert (exact.misses, exact.wasted_steps, exact.verifications) == (20, 60, 40)
    assert exact.miss_rate == pytest.approx(1 / 11) and exact.verify_share == pytest.approx(0.1)
    assert exact.dynamic_rows == 1000 and exact.above_idle_bytes == 400_000_000


def test_speed_is_of_all_requests_together_and_its_interval_holds_the_ratio():
    few_then_many = row("full", 20, generated_tokens=[2] * 10 + [101] * 10, decode_s=[0.2] * 10 + [5.0] * 10)
    figures = Figures(results(row("stock", 20), few_then_many))
    full = figures.row("full")
    assert full.tokens_per_s == pytest.approx(1010 / 52)
    low, high = figures.speed_interval(full)
    assert low < full.tokens_per_s / 20 < high < 1.1


def test_a_request_of_one_token_has_no_time_per_token():
    one = row("full", 2, generated_tokens=[1, 11], decode_s=[0.0, 0.5])
    figures = Figures(results(row("stock", 2), one))
    assert figures.row("full").tpot.mean == pytest.approx(0.05)
    none = row("full", 2, generated_tokens=[1, 1], decode_s=[0.0, 0.0])
    text = report(results(row("stock", 2), none, minimum=2))
    assert table(text, "Latency")["full"]["TPOT"] == "–"
    assert table(text, "Throughput")["full"]["tokens/s"] == "–"


def test_the_tables_show_figures_and_ratios_to_the_stock_framework():
    text = report(results())
    latency = table(text, "Latency")
    assert latency["stock"]["×"] == "1" and latency["prealloc"]["TTFT"] == "100 / 100 / 100 / 100"
    assert latency["prealloc"]["TPOT"] == "25.0 / 25.0 / 25.0 / 25.0"
    assert table(text, "Throughput")["prealloc"] == {
        "variant": "prealloc",
        "n": "20",
        "tokens/s": "40.0",
        "×": "2.00",
        "95 %": "2.00 to 2.00",
        "requests/s": "1.67",
    }
    assert table(text, "Peak memory")["prealloc"]["process"] == "600"
    assert table(text, "Peak memory")["prealloc"]["×"] == "0.60"
    assert table(text, "Vocabulary")["prealloc"]["kept"] == "10.00%"
    assert table(text, "Vocabulary")["prealloc"]["×"] == "0.08"
    exactness = table(text, "Exactness")
    assert exactness["prealloc"]["same text"] == "20 of 20" and exactness["prealloc"]["a token"] == "9.09%"
    assert exactness["prealloc-approximate"]["misses"] == exactness["full"]["misses"] == "–"
    assert claims(text)["prealloc"] == (
        "- `prealloc`: 2.00 × the tokens/s of `stock` (2.00 to 2.00), 1.00 × its time to the first token, "
        "0.60 × its peak memory, the text of `full` in 20 of 20."
    )


def test_a_text_that_differs_is_counted():
    differs = row("prealloc-approximate", 20, same_tokens=[-1] * 17 + [0, 3, 10])
    text = report(results(row("stock", 20), row("full", 20), differs))
    assert table(text, "Exactness")["prealloc-approximate"]["same text"] == "17 of 20"
    assert "the text of `full` in 17 of 20" in claims(text)["prealloc-approximate"]


def test_a_row_of_too_few_prompts_makes_no_claim():
    text = report(results(row("stock", 20), row("full", 20), row("prealloc", 19)))
    assert claims(text)["prealloc"] == "- `prealloc`: too few prompts (19, and a claim needs 20)."
    assert "2.00" not in text.split("## Vocabulary")[0]
    assert table(text, "Throughput")["prealloc"]["×"] == "too few prompts"
    assert table(text, "Peak memory")["prealloc"]["×"] == "too few prompts"
    assert "Too few prompts for any claim (fewer than 20): prealloc." in text
    assert "too few" not in claims(text)["full"]


def test_nothing_is_claimed_beside_a_base_of_too_few_prompts():
    text = report(results(row("stock", 3), row("prealloc", 20)))
    assert "too few prompts" in claims(text)["prealloc"]


def test_random_weights_are_marked_and_claim_nothing_of_texts():
    text = report(results(weights="random"))
    assert text.startswith("# some-model (random weights), torch, float32\n\n> **Random weights")
    assert all("text of" not in claim for claim in claims(text).values())
    assert {cells["same text"] for cells in table(text, "Exactness").values()} == {"–"}
    assert "random weights" not in report(results())


def test_a_busy_machine_is_named():
    busy = results()
    busy["machine"] = busy["machine"] | {"load": 1.5}
    assert "**The machine was busy (load 1.5 at the start, measured on 2 cores)" in report(busy)
    assert "busy" not in report(results())


def test_without_the_stock_framework_ratios_are_to_the_full_head():
    text = report(results(row("full", 20), row("prealloc", 20, same_tokens=None)))
    assert (
        "of `full`" in claims(text)["prealloc"] and table(text, "Exactness")["prealloc"]["same text"] == "–"
    )


def test_memory_that_was_allocated_or_searched_for_has_its_columns():
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
    tries = table(text, "Speed in little memory")
    assert set(tries) == {"stock", "full"}
    assert tries["stock"] | {"without a limit": "12.5", "MB: tokens/s": "500: 0; 800: 11.0"} == tries["stock"]
    assert "little memory" not in report(results())
    assert "allocator" not in report(results()) and "uffices" not in report(results())


def test_the_report_does_not_change_its_results():
    made = results()
    before = copy.deepcopy(made)
    assert report(made) == report(made) and made == before


def test_results_of_another_schema_are_refused():
    with pytest.raises(DataError, match="schema 2, and this vt reads 1"):
        report(results() | {"schema": 2})
