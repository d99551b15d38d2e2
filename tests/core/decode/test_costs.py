from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.decode.costs import Costs, Line
from vt_core.decode.policy import BlockCourse, BlockPolicy

seconds = st.floats(1e-6, 10)


def costs(step: float, fixed: float, position: float) -> Costs:
    found = Costs()
    for _ in range(2):  # the first is not counted
        found.reads.add(1, step)
    for positions in (1, 32, 5, 17):
        found.add_verification(positions, fixed + position * positions)
    return found


@given(step=seconds, fixed=seconds, share=st.floats(0, 1))
def test_line_is_recovered_from_its_points(step, fixed, share):
    position = share * fixed / 17
    found = costs(step, fixed, position)
    assert found.step_s == pytest.approx(step)
    assert found.verify_s(9) == pytest.approx(fixed + 9 * position, rel=1e-4)
    assert found.position_s == pytest.approx(position, rel=1e-3, abs=1e-4 * fixed)


@given(st.lists(st.tuples(st.integers(1, 32), seconds), min_size=1, max_size=12))
def test_line_never_falls_and_has_a_fixed_part(points):
    line = Line()
    assert not line.known
    for x, y in points:
        line.add(x, y)
    assert line.known and line.slope >= 0
    values = [line.at(x) for x in (0, 1, 16, 32)]
    assert values == sorted(values) and values[0] >= 15.9 * line.slope


def test_latest_measurements_weigh_most():
    line = Line()
    line.add(1, 100.0)
    for _ in range(30):
        line.add(1, 2.0)
    assert line.at(1) == pytest.approx(2.0, rel=0.1)


def test_break_even_has_equal_speeds():
    # A step of 10 on the reduced head and 20 on the full one; a verification costs 12 + 0.5 a position.
    found = costs(10.0, 12.0, 0.5)
    rate = found.break_even(20.0, 32)
    assert 0.01 < rate < 0.5
    assert found.tokens_per_s(rate, 32) == pytest.approx(1 / 20, rel=1e-3)
    # By hand: blocks of 2 bring 2 - rate tokens in 33.
    assert costs(10.0, 12.0, 0.5).tokens_per_s(0.4, 2) == pytest.approx(1.6 / 33, rel=1e-3)
    assert found.tokens_per_s(0, 32) == pytest.approx(32 / (320 + 28), rel=1e-3)


def test_break_even_is_0_or_1_where_speeds_never_meet():
    assert costs(10.0, 5.0, 0.0).break_even(20.0, 32) == 1
    assert costs(10.0, 5.0, 0.0).break_even(9.0, 32) == 0


def test_blocks_are_shorter_with_costly_steps_and_frequent_misses():
    def length(step: float, verify: float, confidence: float) -> int:
        course = BlockCourse(BlockPolicy(costs=costs(step, verify, 0.0)), limit=32)
        for n in range(1, 33):
            course.push([confidence], 1)
            if course.is_full(1):
                return n
        raise AssertionError("a block is never longer than 32")

    assert length(1.0, 1.0, 0.1) < length(1.0, 10.0, 0.1)
    assert length(1.0, 1.0, 0.1) < length(1.0, 1.0, 0.6) < length(1.0, 1.0, 0.999)
    assert length(10.0, 0.1, 0.1) == 1 and length(1.0, 100.0, 0.999) == 32
