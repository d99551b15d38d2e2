"""A backend of numpy arrays: small enough to be right by inspection, with the same laws as the real ones."""

from __future__ import annotations

import numpy as np

from vt_core.decode.decoder import Decoder
from vt_core.decode.rounding import Rounding
from vt_core.decode.types import NOT_A_NUMBER
from vt_core.decode.verification import NumpyTile
from vt_core.vocab.heads import Head


class FakeRows:
    """:class:`vt_core.vocab.heads.RowOps` over a table in memory. A bundle is (weight, ids); ``reads`` counts
    rows read.
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.reads = 0
        self.fail = False

    def read(self, ids):
        if self.fail:
            raise OSError("the disk is gone")
        self.reads += len(ids)
        return self.table[ids], np.asarray(ids)

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


class FakeDecoder(Decoder[np.ndarray]):
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
        self.state: np.ndarray | None = None
        self.fail_at: int | None = None
        self.nan_at: int | None = None
        self.steps = 0
        self.verified = self.scans = self.read = 0
        self.scored: list[int] = []  #: positions of each read of the full head for scores
        self.softmaxes = 0
        self._states = self._logits = np.empty(0)
        self._past: list[np.ndarray] = []

    can_rewind = True

    def verify(self, steps, drafts, sampler):
        self.verified += len(steps)
        return super().verify(steps, drafts, sampler)

    def states(self, ids, start):
        for piece in super().states(ids, start):
            self.read += len(piece)
            yield piece

    def score(self, states, targets):
        self.scored.append(len(targets))
        return super().score(states, targets)

    def follow(self, step):
        return self.step(int(self.head.vocabulary.ids[step.local[0]]))

    def peak_memory(self):
        return None

    # The caches: the states before each token since the last rewind.

    def _open_caches(self):
        self.state = np.zeros(self.rows.table.shape[1])

    def _close_caches(self):
        self.state = None

    def _rewind_caches(self, count):
        assert 0 <= count <= len(self._past), "only what was read since the last call can be taken back"
        if count:
            self.state = self._past[-count]
        self._past = []

    def _allow_rewind(self):
        self._past = []

    # Running the body.

    def _run(self, inputs, index):
        states = []
        for place in index[0]:
            self._past.append(self.state)
            self.state = np.tanh(self._mix[0] @ self.state + self._mix[1] @ inputs[place])
            states.append(self.state)
        self._states = np.stack(states)
        self._logits = self.head.logits(self._states[-1:])
        return self._logits

    def _run_step(self, inputs, index):
        self.steps += 1
        if self.steps == self.fail_at:
            raise MemoryError("the device is full")
        logits = self._run(inputs, index)
        return logits * np.nan if self.steps == self.nan_at else logits

    def _copy_states(self, start, end):
        return self._states[start:end].copy()

    def _last_hidden(self):
        return self._states[-1:].copy()

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
        return 1 / np.exp(logits[0] - logits[0].max()).sum()

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
