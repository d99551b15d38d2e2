"""An automaton that accepts the substrings of UTF-8 encoded texts over given characters.

The encodings of the allowed characters form a graph: each node lists the bytes that may come next, and the
last byte of a character leads back to the start. A token may begin and end inside a character, so a byte
string may begin and end at any node. The subset construction turns the graph into a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from vt_core.profile.languages import Range, merged

_START = 0
_DEAD, _ANYWHERE = 0, 1

# First and last code point, marker in the first byte, number of continuation bytes. Surrogates have no UTF-8.
_FORMS = (
    (0x0, 0x7F, 0x00, 0),
    (0x80, 0x7FF, 0xC0, 1),
    (0x800, 0xD7FF, 0xE0, 2),
    (0xE000, 0xFFFF, 0xE0, 2),
    (0x10000, 0x10FFFF, 0xF0, 3),
)


class Utf8Substrings:
    """Accepts the substrings of the UTF-8 encodings of all texts over given characters."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        """`ranges`: the allowed code points, both ends included."""
        self._nodes: list[dict[int, int]] = [{}]
        self._known: dict[tuple[int, tuple[Range, ...]], int] = {}
        allowed = merged(ranges)
        for first, last, marker, rest in _FORMS:
            inside = tuple(
                (max(low, first), min(high, last)) for low, high in allowed if low <= last and high >= first
            )
            for top, part in _split(inside, rest):
                self._nodes[_START][marker | top] = self._node(rest, part)
        self._table = self._determined()

    def accepts(self, value: bytes) -> bool:
        """Whether `value` can occur inside an allowed text. The empty string can."""
        return bool(self.accepts_each([value])[0])

    def accepts_each(self, values: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Whether each of `n` byte strings is accepted, bool `[n]`."""
        lengths = np.fromiter((len(value) for value in values), np.int64, len(values))
        data = np.frombuffer(b"".join(values), np.uint8)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        states = np.full(len(values), _ANYWHERE, np.int32)
        alive = np.flatnonzero(lengths)
        position = 0
        while len(alive):
            states[alive] = self._table[states[alive], data[starts[alive] + position]]
            position += 1
            alive = alive[(lengths[alive] > position) & (states[alive] != _DEAD)]
        return states != _DEAD

    def _node(self, level: int, ranges: tuple[Range, ...]) -> int:
        """The node that must be followed by `level` continuation bytes whose low bits are in `ranges`."""
        if level == 0:
            return _START
        key = level, ranges
        if key not in self._known:
            self._known[key] = len(self._nodes)
            self._nodes.append({})
            children = {0x80 | top: self._node(level - 1, part) for top, part in _split(ranges, level - 1)}
            self._nodes[self._known[key]] = children
        return self._known[key]

    def _determined(self) -> npt.NDArray[np.int32]:
        """The next state for each state and byte, int32 `[states, 256]`."""
        anywhere = frozenset(range(len(self._nodes)))
        numbers = {frozenset(): _DEAD, anywhere: _ANYWHERE}
        rows = [np.zeros(256, np.int32)]
        for nodes in (waiting := [anywhere]):
            row = np.zeros(256, np.int32)
            for byte in {byte for node in nodes for byte in self._nodes[node]}:
                reached = frozenset(self._nodes[node][byte] for node in nodes if byte in self._nodes[node])
                if reached not in numbers:
                    numbers[reached] = len(numbers)
                    waiting.append(reached)
                row[byte] = numbers[reached]
            rows.append(row)
        return np.stack(rows)


def _split(ranges: Iterable[Range], level: int) -> Iterator[tuple[int, tuple[Range, ...]]]:
    """Group `ranges` by their bits above the lowest `6 * level`; each group keeps only those lowest bits."""
    span = 1 << 6 * level
    parts: dict[int, list[Range]] = {}
    for low, high in ranges:
        for top in range(low // span, high // span + 1):
            part = max(low - top * span, 0), min(high - top * span, span - 1)
            parts.setdefault(top, []).append(part)
    for top, pieces in parts.items():
        yield top, tuple(pieces)
