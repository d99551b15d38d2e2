"""Rows of the store on the device: what the head strategies are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from vt_core.tables import Table
from vt_core.vocabulary import Ids
from vt_mlx.device import DTYPES

CHUNK_BYTES = (
    16 << 20
)  #: rows are read and converted in pieces of this size, so that no second copy of a table exists
NO_ID = np.iinfo(np.int32).max


class Rows(NamedTuple):
    """Parallel device arrays: weight ``[n, hidden]``, full ids ``[n]`` int32, bias ``[n]`` or None."""

    weight: mx.array
    ids: mx.array
    bias: mx.array | None


class MlxRows:
    """:class:`vt_core.heads.RowOps` for MLX."""

    def __init__(self, tables: Mapping[str, Table], tied: bool, device: mx.Device, dtype: mx.Dtype) -> None:
        self.embedding = tables["embedding"]
        self._head = self.embedding if tied else tables["head"]
        self._bias = tables.get("head_bias")
        self._device, self._dtype = device, dtype

    def embed(self, ids: Ids) -> mx.array:
        """Embedding rows ``[n, hidden]`` of full ids, not scaled."""
        return self._read(self.embedding, ids)

    @property
    def head_table(self) -> Table:
        return self._head

    def whole_bias(self) -> mx.array | None:
        """The bias of every row, ``[V]``, where the head has one."""
        if self._bias is None:
            return None
        return self._read(self._bias, np.arange(self._bias.spec.rows)).flatten()

    def read(self, ids: Ids) -> Rows:
        bias = None if self._bias is None else self._read(self._bias, ids).flatten()
        return Rows(self._read(self._head, ids), mx.array(ids.astype(np.int32)), bias)

    def reserve(self, rows: Rows, capacity: int) -> Rows:
        return _map(lambda part: _grown(part, capacity), rows)

    def write(self, buffer: Rows, start: int, rows: Rows) -> Rows:
        for whole, part in zip(buffer, rows, strict=True):
            if whole is not None:
                # In place only while nothing else holds the buffer: a step still in flight would make this a
                # full copy.
                whole[start : start + len(part)] = part
                mx.eval(whole)
        return buffer

    def first(self, rows: Rows, count: int) -> Rows:
        return _map(lambda part: part[:count], rows)

    def concatenate(self, first: Rows, second: Rows) -> Rows:
        bias = None if first.bias is None else mx.concatenate([first.bias, second.bias])
        joined = Rows(
            mx.concatenate([first.weight, second.weight]), mx.concatenate([first.ids, second.ids]), bias
        )
        mx.eval([part for part in joined if part is not None])
        return joined

    def product(self, hidden: mx.array, rows: Rows) -> mx.array:
        logits = hidden @ rows.weight.T
        return logits if rows.bias is None else logits + rows.bias

    def join(self, logits: list[mx.array]) -> mx.array:
        return mx.concatenate(logits, axis=-1)

    def nbytes(self, rows: Rows) -> int:
        return rows.weight.nbytes + (0 if rows.bias is None else rows.bias.nbytes)

    def _read(self, table: Table, ids: Ids) -> mx.array:
        step = max(1, CHUNK_BYTES // (table.spec.columns * 4))
        if len(ids) <= step:
            return as_array(table.read(ids), table.spec.dtype).astype(self._dtype)
        out = mx.zeros((len(ids), table.spec.columns), dtype=self._dtype)
        for start in range(0, len(ids), step):
            out[start : start + step] = as_array(
                table.read(ids[start : start + step]), table.spec.dtype
            ).astype(self._dtype)
            mx.eval(out)
        return out


def as_array(array: np.ndarray, dtype: str) -> mx.array:
    """A copy on the device of an array in storage dtype."""
    return mx.array(array).view(DTYPES[dtype])


def greedy(logits: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    """Full and local ids ``[k]`` of the largest of ``logits [k, n]``; of equal ones the lowest full id."""
    tied = mx.where(logits == logits.max(axis=-1, keepdims=True), ids, NO_ID)
    local = mx.argmin(tied, axis=-1)
    return ids[local], local


def _map(function, rows: Rows) -> Rows:  # type: ignore[no-untyped-def]
    return Rows(*(None if part is None else function(part) for part in rows))


def _grown(part: mx.array, capacity: int) -> mx.array:
    grown = mx.zeros((capacity, *part.shape[1:]), dtype=part.dtype)
    grown[: len(part)] = part
    mx.eval(grown)
    return grown
