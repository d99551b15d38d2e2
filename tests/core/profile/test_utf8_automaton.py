"""Compares the automaton with its definition: accept iff some text over the characters contains the bytes."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.profile.languages import Range
from vt_core.profile.utf8_automaton import Utf8Substrings


class Witnesses:
    """The same rule without an automaton: split a byte string where characters end, and look each part up."""

    def __init__(self, ranges: list[Range]) -> None:
        points = chain.from_iterable(range(low, high + 1) for low, high in ranges)
        self._characters = [chr(point) for point in points if not 0xD800 <= point <= 0xDFFF]
        self._whole = set(self._characters)
        self._ends: dict[bytes, str] = {}
        self._starts: dict[bytes, str] = {}
        self._insides: dict[bytes, str] = {}
        for character in self._characters:
            code = character.encode()
            for start in range(len(code) + 1):
                for end in range(start, len(code) + 1):
                    self._insides.setdefault(code[start:end], character)
                self._ends.setdefault(code[start:], character)
                self._starts.setdefault(code[:start], character)

    def text(self, value: bytes) -> str | None:
        """A text over the characters whose UTF-8 contains `value`, or None."""
        if not value:
            return ""  # even if there are no characters, as in a range of surrogates
        if value in self._insides:
            return self._insides[value]
        for first in range(min(len(value), 3) + 1):
            for last in range(min(len(value) - first, 3) + 1):
                middle = self._middle(value[first : len(value) - last])
                head, tail = self._ends.get(value[:first]), self._starts.get(value[len(value) - last :])
                if middle is not None and head is not None and tail is not None:
                    return head + middle + tail
        return None

    def _middle(self, value: bytes) -> str | None:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return None
        return text if set(text) <= self._whole else None


# First and last code points of each UTF-8 length, and the neighbors of the surrogates.
EDGES = [
    0x0,
    0x7F,
    0x80,
    0x7FF,
    0x800,
    0xFFF,
    0x1000,
    0xD7FF,
    0xE000,
    0xFFFF,
    0x10000,
    0x3FFFF,
    0x40000,
    0x10FFFF,
]

narrow_ranges = st.builds(
    lambda low, length: (low, min(low + length, 0x10FFFF)),
    st.one_of(st.sampled_from(EDGES), st.integers(0, 0x10FFFF)).map(lambda point: max(0, point - 3)),
    st.integers(0, 70),
)


@given(st.data())
def test_accepts_exactly_the_substrings(data: st.DataObject) -> None:
    ranges = data.draw(st.lists(narrow_ranges, min_size=1, max_size=3))
    witnesses, automaton = Witnesses(ranges), Utf8Substrings(ranges)
    inside = st.integers(0, len(ranges) - 1).flatmap(lambda index: st.integers(*ranges[index]))
    around = st.one_of(inside, inside.map(lambda point: min(point + 1, 0x10FFFF)), st.sampled_from(EDGES))
    texts = st.lists(around.filter(lambda point: not 0xD800 <= point <= 0xDFFF).map(chr), max_size=4).map(
        "".join
    )
    code = data.draw(texts).encode()
    start = data.draw(st.integers(0, len(code)))
    end = data.draw(st.integers(start, len(code)))
    value = bytearray(code[start:end])
    if value and data.draw(st.booleans()):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    witness = witnesses.text(bytes(value))
    assert automaton.accepts(bytes(value)) == (witness is not None)
    assert witness is None or bytes(value) in witness.encode()


@given(st.lists(narrow_ranges, min_size=1, max_size=4))
def test_range_ends_are_accepted_and_their_neighbors_refused(ranges: list[Range]) -> None:
    automaton = Utf8Substrings(ranges)
    allowed = set(chain.from_iterable(range(low, high + 1) for low, high in ranges))
    for low, high in ranges:
        for point in (low - 1, low, high, high + 1):
            if 0 <= point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
                assert automaton.accepts(chr(point).encode()) == (point in allowed)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (b"", True),
        (b"\xb8", True),  # inside 中
        (b"\xb8\xad", True),  # its end
        (b"\xad\xe4", True),  # the end of one and the start of the next
        (b"\xad\xe4\xb8\xad\xe4\xb8", True),
        (b"\xe4\xe4", False),
        (b"\xb8\xb8", False),
        (b"\xb8\xad\xad", False),
        (b"a", False),
        (b"\xe4\xb8\xae", False),  # 丮, the next character
    ],
)
def test_substrings_of_one_character(value: bytes, accepted: bool) -> None:
    assert Utf8Substrings([(0x4E2D, 0x4E2D)]).accepts(value) is accepted


def test_without_characters_only_the_empty_string_is_accepted() -> None:
    automaton = Utf8Substrings([])
    assert automaton.accepts_each([b"", b"a", b"\x80"]).tolist() == [True, False, False]


def test_surrogates_are_not_accepted() -> None:
    automaton = Utf8Substrings([(0xD800, 0xDFFF)])
    assert not automaton.accepts("\ud800".encode("utf-8", "surrogatepass"))
    assert not automaton.accepts(b"\xed")


@given(st.lists(st.binary(max_size=6), max_size=20))
def test_accepts_each_matches_accepts(values: list[bytes]) -> None:
    automaton = Utf8Substrings([(0x20, 0x7E), (0x4E00, 0x4E20)])
    assert automaton.accepts_each(values).tolist() == [automaton.accepts(value) for value in values]
