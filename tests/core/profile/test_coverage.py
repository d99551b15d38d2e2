from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import OptionError, OutputError
from vt_core.profile.coverage import SIZES, Coverage
from vt_core.profile.plot import plot_coverage


def coverage(ranking: list[int], always: list[int], missing: list[list[int]], tokens: int) -> Coverage:
    result = Coverage(np.array(ranking, np.int64), 20, np.array(always, np.int64))
    result.add(missing, tokens)
    return result


def test_curves_of_a_small_corpus() -> None:
    # 10 tokens, of which 4 are in the input; 19 is always active, 7 is in no ranking.
    result = coverage([3, 5], [19], [[3, 5, 3], [19], [7, 3], []], 10)
    assert result.token_curve().tolist() == [0.5, 0.8, 0.9]
    assert result.example_curve().tolist() == [0.5, 0.5, 0.75]
    assert (result.tokens, result.copied, result.examples) == (10, 4, 4)
    assert [result.size_at(rate) for rate in (0.5, 0.49, 0.2, 0.1, 0.09)] == [0, 1, 1, 2, None]


examples = st.lists(st.lists(st.integers(0, 19), max_size=6), min_size=1, max_size=8)


@given(
    st.permutations(range(20)),
    st.integers(0, 20),
    st.sets(st.integers(0, 19), max_size=4),
    examples,
    st.integers(0, 9),
)
def test_curve_matches_the_coverage_of_each_size(
    order: list[int], length: int, always: set[int], missing: list[list[int]], copied: int
) -> None:
    tokens = copied + sum(map(len, missing))
    result = coverage(order[:length], sorted(always), missing, tokens)
    for size in range(length + 1):
        active = {*order[:size], *always}
        covered = copied + sum(id in active for example in missing for id in example)
        whole = sum(set(example) <= active for example in missing)
        assert result.token_curve()[size] == pytest.approx(covered / tokens if tokens else 1.0)
        assert result.example_curve()[size] == pytest.approx(whole / len(missing))


@given(examples, examples)
def test_examples_can_be_added_in_parts(first: list[list[int]], second: list[list[int]]) -> None:
    ranking = list(range(0, 20, 2))
    parts = coverage(ranking, [1], first, 50)
    parts.add(second, 50)
    whole = coverage(ranking, [1], first + second, 100)
    assert parts.token_curve().tolist() == whole.token_curve().tolist()
    assert parts.example_curve().tolist() == whole.example_curve().tolist()


def test_knee_is_before_the_flat_part() -> None:
    # The first two ids cover nearly everything, eight more cover one token each.
    missing = [[0] * 45 + [1] * 45 + list(range(2, 10))]
    assert coverage(list(range(10)), [], missing, 98).knee() == 2


def test_knee_is_zero_if_no_row_helps() -> None:
    assert coverage([1, 2], [], [[], []], 4).knee() == 0
    assert coverage([1, 2], [], [[7]], 1).knee() == 0


def test_report_has_every_size_up_to_the_limit() -> None:
    result = coverage(list(range(10)), [], [[0, 0, 1], [5]], 5)
    report = json.loads(json.dumps(result.report((7, 30), (0.3,))))
    assert [point["rows"] for point in report["curve"]] == sorted({0, result.knee(), 7, 10})
    assert report["curve"][-1] == {"rows": 10, "token_coverage": 1.0, "example_coverage": 1.0}
    assert report["rows_at_miss_rate"]["0.3"] == 2
    assert report["rows_at_miss_rate"]["0.05"] == 6
    assert max(SIZES) > 10


def report() -> dict:
    result = coverage(list(range(10)), [], [[0, 0, 1], [5]], 5)
    held_out = {"rows": 7, "token_coverage": 0.9}
    return {"task": "t", "held_out": held_out, "profiled_rows": 6, **result.report((7,))}


def test_plot_is_a_png_file(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    plot_coverage(report(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"absent.*plot\.png: cannot be written"):
        plot_coverage(report(), tmp_path / "absent" / "plot.png")


def test_missing_matplotlib_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match="needs the library matplotlib; install it"):
        plot_coverage(report(), tmp_path / "plot.png")
