"""A backend of numpy arrays: small enough to be right by inspection, with the same laws as the real ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vt_core.decode.decoder import Decoder
from vt_core.decode.rounding import Rounding
from vt_core.decode.tiles import NumpyTile
from vt_core.decode.types import NOT_A_NUMBER, Read, Slot
from vt_core.vocab.heads import Head


class FakeRows:
    """:class:`vt_core.vocab.heads.RowOps` over a table in memory. A bundle is (weight, ids); ``reads`` counts
    rows read.
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.reads = 0
        self.fail = False

    def read(self, ids, spare=0):
        if self.fail:
            raise OSError("the disk is gone")
        self.reads += len(ids)
        return self.reserve((self.table[ids], np.asarray(ids)), len(ids) + spare)

    def reserve(self, rows, capacity):
        def grown(part):
            buffer = np.full(
                (capacity, *part.shape[1:]), 999, dtype=part.dtype
            )  # spare rows would win every choice
            buffer[: len(part)] = part
            return buffer

        return tuple(map(grown, rows))

    def write(self, buffer, start, rows):
        for whole, part in zip(buffer, rows, strict=True):
            whole[start : start + len(part)] = part
        return buffer

    def first(self, rows, count):
        return tuple(part[:count] for part in rows)

    def concatenate(self, first, second):
        return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))

    def product(self, hidden, rows):
        return hidden @ rows[0].T

    def join(self, logits):
        return np.concatenate(logits, axis=-1)

    def nbytes(self, rows):
        return rows[0].nbytes

    def inputs(self, ids):
        return self.table[ids]


@dataclass(slots=True, eq=False)
class FakeSlot(Slot[np.ndarray]):
    state: np.ndarray | None = None
    past: list[np.ndarray] = field(default_factory=list)  #: states before each token


class FakeDecoder(Decoder[np.ndarray, FakeSlot]):
    """A model whose hidden state is a fixed function of everything it has read."""

    def __init__(self, table: np.ndarray, head: type[Head], can_follow: bool = False, seed: int = 0) -> None:
        rows = FakeRows(table)
        super().__init__(
            head(rows, len(table)),
            rows,
            device="fake",
            dtype="float32",
            tied=False,
            can_follow=can_follow,
            transform=None,
            framework_name="fake",
        )
        self.rows = rows
        self._mix = np.random.default_rng(seed).normal(size=(2, table.shape[1], table.shape[1]))
        self.can_rewind = self.can_cut = self.can_read_together = True
        self.together = 0  #: passes of the body for several slots
        self.opened = 0  #: slots that are open
        self.fail_at: int | None = None
        self.nan_at: int | None = None
        self.steps = 0
        self.verified = self.scans = self.positions = 0
        self.scored: list[int] = []  #: positions of each read of the full head for scores
        self.softmaxes = 0
        self._states = self._logits = np.empty(0)

    def verify(self, blocks):
        self.verified += sum(len(block.drafts) for block in blocks)
        return super().verify(blocks)

    def states(self, ids, start):
        for piece in super().states(ids, start):
            self.positions += len(piece)
            yield piece

    def score(self, states, targets, top=0):
        self.scored.append(len(targets))
        return super().score(states, targets, top)

    def follow(self, slot, steps):
        (after,) = self.read([Read(slot, [int(self.head.vocabulary.ids[steps.local[0]])])])
        return after

    def close(self, slot):
        super().close(slot)
        self.opened -= 1

    def _cache_bytes(self, slot):
        return slot.state.nbytes * (1 + len(slot.text))

    def _export_caches(self, slot):
        return {"state": slot.state}, None

    def _restore_caches(self, slot, arrays, state):
        slot.state = arrays["state"]

    def peak_memory(self):
        return None

    # The caches.

    def _new_slot(self):
        self.opened += 1
        return FakeSlot(state=np.zeros(self.rows.table.shape[1]), can_rewind=self.can_rewind)

    def _copy_slot(self, slot):
        self.opened += 1
        return replace(slot, text=list(slot.text), past=list(slot.past))

    def _empty_caches(self, slot):
        slot.state, slot.past = np.zeros(self.rows.table.shape[1]), []

    def _rewind_caches(self, slot, count):
        assert 0 < count <= len(slot.past), "only what was read since the slot was settled can be taken back"
        slot.state = slot.past[-count]
        del slot.past[-count:]
        return 0

    def _settle_caches(self, slot):
        slot.past = []

    def _cut_caches(self, slot, count):
        if count and not self.can_cut:
            return False
        if count:
            kept = slot.ids[: len(slot.text) - count]
            self._empty_caches(slot)
            for token in kept:
                self._read(slot, self.rows.table[token])
        return True

    # Running the body.

    def _read(self, slot, row):
        slot.past.append(slot.state)
        slot.state = np.tanh(self._mix[0] @ slot.state + self._mix[1] @ row)
        return slot.state

    def _run(self, slot, inputs, index, positions=1):
        states = [self._read(slot, inputs[place]) for place in index[0]]
        self._states = np.stack(states)
        return self._product(positions)

    def _product(self, positions):
        self._positions = positions
        # One by one: numpy rounds products of other sizes differently.
        hidden = self._states[-positions:]
        self._logits = np.concatenate([self.head.logits(row[None]) for row in hidden])
        return self._logits

    def _run_steps(self, slot, inputs, index, positions):
        before = self.steps
        self.steps += index.shape[1]
        if self.fail_at is not None and before < self.fail_at <= self.steps:
            raise MemoryError("the device is full")
        logits = self._run(slot, inputs, index, positions)
        return logits * np.nan if self.nan_at is not None and before < self.nan_at <= self.steps else logits

    def _fits_together(self, reads):
        return self.can_read_together

    def _run_together(self, slots, inputs, index, counts):
        self.together += 1
        places, states = iter(index[0]), []
        for slot, count in zip(slots, counts, strict=True):
            states += [self._read(slot, inputs[next(places)]) for _ in range(count)]
            self.steps += count
        self._states = np.stack(states)
        return self._product(len(states))

    def _every_state(self):
        return self._states

    def _hidden(self):
        return self._states[-self._positions :].copy()

    def _head_logits(self):
        return self._logits

    def _scan_head(self, hidden):
        return self

    rounding = Rounding("float32")

    def tiles(self, hidden):
        self.scans += 1
        full = (hidden @ self.rows.table.T).astype(np.float32)
        return (NumpyTile(at, full[:, at : at + 37].copy()) for at in range(0, full.shape[1], 37))

    def row_logits(self, hidden, ids):
        return (hidden @ self.rows.table[ids].T).astype(np.float32)[0]

    # Arrays.

    def _greedy(self, logits):
        ids = self.head.vocabulary.ids
        tied = np.where(logits == logits.max(axis=-1, keepdims=True), ids, NOT_A_NUMBER)
        local = tied.argmin(axis=-1)
        return np.take_along_axis(tied, local[:, None], axis=-1)[:, 0], local

    def _top_probability(self, logits):
        self.softmaxes += 1
        return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)

    def _index(self, index):
        return index[None]

    def _to_host(self, array):
        return array.astype(np.float32)

    def _concatenate(self, arrays):
        return np.concatenate(arrays)

    def _all_finite(self, array):
        return bool(np.isfinite(array).all())

    def _equal(self, first, second):
        return np.array_equal(first, second)


def fake_table(rows: int = 200, hidden: int = 16, seed: int = 1) -> np.ndarray:
    """Small integers, so that products are exact and ties between rows are common."""
    return np.random.default_rng(seed).integers(-2, 3, size=(rows, hidden)).astype(np.float64)
