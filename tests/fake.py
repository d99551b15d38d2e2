"""A backend of numpy arrays: small enough to be right by inspection, with the same laws as the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vt_core.decode.scoring import log_probabilities
from vt_core.decode.verification import NumpyTile, verify
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


@dataclass
class FakeStep:
    hidden: np.ndarray
    logits: np.ndarray
    token: int


class FakeDecoder:
    """A model whose hidden state is a fixed function of everything it has read."""

    device = "fake"
    dtype = "float32"
    can_rewind = True

    def __init__(self, table: np.ndarray, head: type[Head], can_follow: bool = False, seed: int = 0) -> None:
        self.rows = FakeRows(table)
        self.head = head(self.rows, len(table))
        self.can_follow = can_follow
        self._mix = np.random.default_rng(seed).normal(size=(2, table.shape[1], table.shape[1]))
        self.state: np.ndarray | None = None
        self.fail_at: int | None = None
        self.steps = 0
        self.verified = self.scans = self.read = 0
        self.scored: list[int] = []  #: positions of each reading of the full head
        self._past: list[np.ndarray] = []

    def begin(self):
        self.state = np.zeros(self.rows.table.shape[1])

    def prefill(self, ids):
        for token in ids[:-1]:
            self._read(token)
        step = self.step(int(ids[-1]))
        self._past = []
        return step

    def step(self, token):
        self.steps += 1
        if self.steps == self.fail_at:
            raise MemoryError("the device is full")
        self._read(token)
        logits = self.head.logits(self.state[None])
        ids = self.head.vocabulary.ids
        best = int(ids[logits[0] == logits[0].max()].min())
        return FakeStep(self.state.copy(), logits, best)

    def follow(self, step):
        return self.step(step.token)

    def poll(self, step):
        return step.token

    def logits(self, step):
        return step.logits[0].astype(np.float32)

    def confidence(self, step):
        return float(1 / np.exp(step.logits[0] - step.logits[0].max()).sum())

    def verify(self, steps, drafts, sampler):
        self.verified += len(steps)
        full = (np.stack([step.hidden for step in steps]) @ self.rows.table.T).astype(np.float32)

        def scan():
            self.scans += 1
            return (NumpyTile(at, full[:, at : at + 37].copy()) for at in range(0, full.shape[1], 37))

        return verify(scan, drafts, sampler)

    def states(self, ids, start):
        for at, token in enumerate(ids):
            self._read(token)
            if at >= start:
                self.read += 1
                yield self.state[None].copy()

    def score(self, states, targets):
        self.scored.append(len(targets))
        full = (np.concatenate(states) @ self.rows.table.T).astype(np.float32)
        tiles = (NumpyTile(at, full[:, at : at + 37].copy()) for at in range(0, full.shape[1], 37))
        return log_probabilities(tiles, targets)

    def rewind(self, count):
        assert 0 <= count <= len(self._past), "only what was read since the last call can be taken back"
        if count:
            self.state = self._past[-count]
        self._past = []

    def end(self):
        self.state = None
        self.head.truncate()

    def peak_memory(self):
        return None

    def _read(self, token):
        self._past.append(self.state)
        self.state = np.tanh(self._mix[0] @ self.state + self._mix[1] @ self.rows.table[token])


def fake_table(rows: int = 200, hidden: int = 16, seed: int = 1) -> np.ndarray:
    """Small integers, so that products are exact and ties between rows are common."""
    return np.random.default_rng(seed).integers(-2, 3, size=(rows, hidden)).astype(np.float64)
