"""Rows of the store on the device, and the operations that the head strategies need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vt_core.decode.types import NOT_A_NUMBER
from vt_core.files.tables import Table
from vt_core.types import Ids
from vt_torch import integers
from vt_torch.device import DTYPES
from vt_torch.integers import Digits, to_digits
from vt_torch.quantized import product

#: Rows are read and converted in pieces of this size, so that no second copy of a table exists.
CHUNK_BYTES = 16 << 20


class Rows(NamedTuple):
    """Rows of the head, as parallel device arrays."""

    weight: torch.Tensor  #: ``[n, hidden]``, in the run's dtype or int8
    ids: torch.Tensor  #: full ids, ``[n]`` int64
    bias: torch.Tensor | None  #: ``[n]``
    scales: torch.Tensor | None  #: ``[n]`` float32 for an int8 weight


class Inputs(NamedTuple):
    """Rows in which a body looks tokens up. Both have the same order."""

    embedding: torch.Tensor  #: ``[n, hidden]``
    per_layer: torch.Tensor | None = None  #: ``[n, layers * width]``, for models with a per-layer table


class TorchRows:
    """:class:`vt_core.vocab.heads.RowOps` for PyTorch."""

    def __init__(
        self,
        tables: Mapping[str, Table],
        tied: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.embedding = tables["embedding"]
        self.quantized = "head_scales" in tables  #: whether head rows are int8; embeddings never are
        self._head = self.embedding if tied and not self.quantized else tables["head"]
        self._bias = tables.get("head_bias")
        self.per_layer = tables.get("per_layer")
        self._device, self._dtype = device, dtype
        self._scales = _whole(tables["head_scales"]).to(device) if self.quantized else None

    def embed(self, ids: Ids) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of full ids, without the scale that some models apply."""
        return self._read(self.embedding, ids)

    def inputs(self, ids: Ids) -> Inputs:
        """Rows of full ids in all tables that a body looks them up in."""
        if self.per_layer is None:
            return Inputs(self.embed(ids))
        # Gemma 3n has fewer rows here than tokens, and uses row 0 for ids after the last.
        known = np.where(ids < self.per_layer.spec.rows, ids, 0)
        return Inputs(self.embed(ids), self._read(self.per_layer, known))

    def tied_inputs(self, rows: Rows) -> Inputs:
        """Head rows of a tied model, as embedding rows."""
        return Inputs(rows.weight)

    @property
    def head_table(self) -> Table:
        return self._head

    def whole_bias(self) -> torch.Tensor | None:
        """Bias of every row, ``[V]``; None if the head has none."""
        return None if self._bias is None else _whole(self._bias).to(self._device, self._dtype)

    def whole_scales(self) -> torch.Tensor:
        """Scale of every row of a quantized head, float32 ``[V]``."""
        assert self._scales is not None, "the head is quantized"
        return self._scales

    def read(self, ids: Ids, spare: int = 0) -> Rows:
        bias = None if self._bias is None else self._read(self._bias, ids, spare).flatten()
        full_ids = torch.from_numpy(np.pad(ids, (0, spare))).to(self._device)
        if self._scales is None:
            return Rows(self._read(self._head, ids, spare), full_ids, bias, None)
        return Rows(self._read(self._head, ids, spare, torch.int8), full_ids, bias, self._scales[full_ids])

    def reserve(self, rows: Rows, capacity: int) -> Rows:
        return _map(lambda part: _grown(part, capacity), rows)

    def write(self, buffer: Rows, start: int, rows: Rows) -> Rows:
        for whole, part in zip(buffer, rows, strict=True):
            if whole is not None:
                whole[start : start + len(part)] = part
        return buffer

    def first(self, rows: Rows, count: int) -> Rows:
        return _map(lambda part: part[:count], rows)

    def concatenate(self, first: Rows, second: Rows) -> Rows:
        pairs = zip(first, second, strict=True)
        return Rows(*(None if one is None else torch.cat([one, other]) for one, other in pairs))

    def product(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        if rows.scales is None:
            return F.linear(hidden, rows.weight, rows.bias)
        return self.quantized_product(self.as_factor(hidden), rows)

    def as_factor(self, hidden: torch.Tensor) -> torch.Tensor | Digits:
        """Hidden states as :meth:`quantized_product` takes them, so that they are rounded once for many
        products.
        """
        return to_digits(hidden) if hidden.device.type == "cpu" else hidden

    def quantized_product(self, factor: torch.Tensor | Digits, rows: Rows) -> torch.Tensor:
        """Logits ``[k, n]`` of int8 rows: float32 on a CPU, elsewhere in the float type of the states."""
        assert rows.scales is not None, "the head is quantized"
        if isinstance(factor, Digits):
            logits = integers.product(factor, rows.weight, rows.scales)
        else:
            logits = product(factor, rows.weight, rows.scales)
        return logits if rows.bias is None else logits + rows.bias

    def join(self, logits: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(logits, dim=-1)

    def nbytes(self, rows: Rows) -> int:
        return sum(part.nbytes for part in (rows.weight, rows.bias, rows.scales) if part is not None)

    def _read(self, table: Table, ids: Ids, spare: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
        shape = len(ids) + spare, table.spec.columns
        out = torch.empty(shape, dtype=dtype or self._dtype, device=self._device)
        for part, rows in self._pieces(table, ids):
            out[part] = rows
        return out

    @staticmethod
    def _pieces(table: Table, ids: Ids) -> Iterator[tuple[slice, torch.Tensor]]:
        """Stored rows in host memory, and the positions of their ids."""
        step = max(1, CHUNK_BYTES // (table.spec.columns * 4))
        for start in range(0, len(ids), step):
            part = slice(start, min(start + step, len(ids)))
            yield part, as_tensor(table.read(ids[part]), table.spec.dtype)


class _Writable:
    """The memory of an array, declared writable.

    PyTorch warns about read-only memory. Rows from the store's mapping are read-only, and are only read here.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor over the memory of an array in storage dtype. It must not be written to."""
    stored = array.view(np.int16) if dtype == "bfloat16" else array
    return torch.from_numpy(np.asarray(_Writable(stored))).view(DTYPES[dtype])


def _whole(table: Table) -> torch.Tensor:
    """A table of one column, ``[V]``."""
    return as_tensor(table.read(np.arange(table.spec.rows)), table.spec.dtype).flatten()


def greedy(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Full and local ids ``[k]`` of the largest of ``logits [k, n]``; of equal ones the lowest full id.

    A row with a NaN, which equals nothing, gives :data:`NOT_A_NUMBER` as its full id.
    """
    tied = torch.where(logits == logits.amax(dim=-1, keepdim=True), ids, NOT_A_NUMBER)
    local = tied.argmin(dim=-1)
    return tied.gather(-1, local[:, None])[:, 0], local


def _map(function: Callable[[torch.Tensor], torch.Tensor], rows: Rows) -> Rows:
    return Rows(*(None if part is None else function(part) for part in rows))


def _grown(part: torch.Tensor, capacity: int) -> torch.Tensor:
    grown = torch.empty(capacity, *part.shape[1:], dtype=part.dtype, device=part.device)
    grown[: len(part)] = part
    return grown
