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


def length(step: float, verify: float, confidence: float, rereads: bool = False, found=None) -> int:
    """Tokens of a block of equally confident tokens."""
    course = BlockCourse(BlockPolicy(costs=found or costs(step, verify, 0.0)), limit=32)
    for n in range(1, 33):
        course.push([confidence], 1)
        if course.is_full(1, rereads):
            return n
    raise AssertionError("a block is never longer than 32")


def test_blocks_are_shorter_with_costly_steps_and_frequent_misses():
    assert length(1.0, 1.0, 0.1) < length(1.0, 10.0, 0.1)
    assert length(1.0, 1.0, 0.1) < length(1.0, 1.0, 0.6) < length(1.0, 1.0, 0.999)
    assert length(10.0, 0.1, 0.1) == 1 and length(1.0, 100.0, 0.999) == 32


def test_blocks_are_shorter_where_tokens_are_read_again_after_a_miss():
    assert length(1.0, 10.0, 0.3, rereads=True) < length(1.0, 10.0, 0.3)
    assert length(1.0, 10.0, 0.999, rereads=True) <= length(1.0, 10.0, 0.999)
    # By hand, with misses of 12 %: read again for 1 second each, blocks of n tokens take n + 10 seconds and
    # what misses before the last token add, and bring 1 + .88 + ... tokens.
    right = [0.88**at for at in range(33)]
    found = costs(1.0, 10.0, 0.0)
    for _ in range(2):
        found.reads.add(33, 1 + 0.35 * 32)
    for rereads in (False, True):
        again = [rereads * 0.12 * right[at] * (1 + 0.35 * at) for at in range(32)]
        speed = [sum(right[:n]) / (n + 10 + sum(again[: n - 1])) for n in range(1, 33)]
        assert length(1.0, 10.0, 0.3, rereads, found) == speed.index(max(speed)) + 1


def test_reading_again_costs_what_was_measured():
    found = costs(1.0, 10.0, 0.0)
    assert found.reread_s(3) == found.reads.seconds(3)
    found.add_reread(3, 9 * found.reads.seconds(3))
    assert found.reread_s(5) == pytest.approx(9 * found.reads.seconds(5))
    assert length(1.0, 10.0, 0.3, True, found) < length(1.0, 10.0, 0.3, True)


def test_certain_tokens_are_read_until_their_expected_waste_is_worth_a_verification():
    policy = BlockPolicy(costs=costs(1.0, 3.1, 0.0))
    course = BlockCourse(policy, limit=32)
    course.push([0.6], 1)
    assert not course.is_full(1)
    wrong = course.miss_rate(0.6)
    reads = 0
    while not course.is_full(1):
        course.push([None, None], 1)
        reads += 1
    assert (reads - 1) * wrong <= 3.1 < reads * wrong
    course.learn(1)
    assert sum(policy.seen) == sum(BlockPolicy().seen) + 1


def test_certain_tokens_alone_never_fill_a_block():
    course = BlockCourse(BlockPolicy(costs=costs(1.0, 0.1, 0.0)), limit=32)
    for _ in range(100):
        course.push([None], 1)
        assert not course.is_full(1)


def test_blocks_of_reads_that_bring_many_tokens_hold_as_many_reads():
    # Reads and verifications cost what they did, so a block is worth as many of them.
    found = costs(1.0, 3.0, 0.0)
    course = BlockCourse(BlockPolicy(costs=found), limit=32)
    reads = 0
    while reads == 0 or not course.is_full(1):
        course.push([0.999] * 4, 1)
        reads += 1
    assert reads == min(8, length(1.0, 3.0, 0.999))
