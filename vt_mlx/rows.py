"""Rows of the store on the device, and the operations that the head strategies need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import mlx.core as mx
import numpy as np

from vt_core.decode.types import NOT_A_NUMBER
from vt_core.files.packing import split_rows
from vt_core.files.quantization import Quantization
from vt_core.files.tables import Table
from vt_core.types import Ids
from vt_mlx.device import DTYPES, ModelStream, on_device

#: Rows are read and converted in pieces of this size, so that no second copy of a table exists.
CHUNK_BYTES = 4 << 20

#: If the number of packed rows is not a multiple of this, a GPU uses another kernel, which sums in another
#: order.
KERNEL_ROWS = 8


class Rows(NamedTuple):
    """Rows of the head, as parallel device arrays."""

    weight: mx.array  #: ``[n, hidden]`` in the run's dtype; of a quantized table ``[n, words]`` uint32
    ids: mx.array  #: full ids, ``[n]`` int32
    bias: mx.array | None  #: ``[n]``
    scales: mx.array | None = None  #: ``[n, groups]`` of a quantized table, in the run's dtype
    biases: mx.array | None = None  #: the same


class Inputs(NamedTuple):
    """Rows in which a body looks tokens up. Both have the same order."""

    embedding: mx.array | PackedMatrix  #: ``[n, hidden]``
    per_layer: mx.array | None = None  #: ``[n, layers * width]``, for models with a per-layer table


class PackedMatrix:
    """Packed rows that are indexed like a matrix of floats."""

    def __init__(self, weight: mx.array, scales: mx.array, biases: mx.array, how: Quantization) -> None:
        self._parts = (weight, scales, biases)
        self._how = how

    def __getitem__(self, ids: mx.array | slice) -> mx.array:
        weight, scales, biases = (part[ids] for part in self._parts)
        how = self._how
        return mx.dequantize(weight, scales, biases, group_size=how.group_size, bits=how.bits)


Method = TypeVar("Method", bound=Callable[..., Any])


def _on_own_stream(method: Method) -> Method:
    """Run a method of :class:`MlxRows` on its stream. The head calls these outside a decoder's calls too."""

    @wraps(method)
    def run(self: MlxRows, *arguments: Any) -> Any:
        with on_device(self._stream):
            return method(self, *arguments)

    return cast(Method, run)


class MlxRows:
    """:class:`vt_core.vocab.heads.RowOps` for MLX."""

    def __init__(
        self,
        tables: Mapping[str, Table],
        quantized: Mapping[str, Quantization],
        tied: bool,
        stream: ModelStream,
        dtype: mx.Dtype,
    ) -> None:
        """
        Args:
            tables: the tables as stored, by name.
            quantized: how the quantized ones among them are packed.
            tied: whether head and embedding are one table.
            stream: where the rows go.
            dtype: float type of the run.
        """
        head = "embedding" if tied else "head"
        self.embedding, self.head_table = tables["embedding"], tables[head]
        self.embedding_how, self.head_how = quantized.get("embedding"), quantized.get(head)
        self._bias = tables.get("head_bias")
        self.per_layer, self._per_layer_how = tables.get("per_layer"), quantized.get("per_layer")
        self._stream, self._dtype = stream, dtype
        #: Packed rows are multiplied in multiples of so many.
        self._multiple = KERNEL_ROWS if stream.device.type == mx.DeviceType.gpu else 1

    def embed(self, ids: Ids) -> mx.array:
        """Embedding rows ``[n, hidden]`` of full ids, without the scale that some models apply."""
        return self._values(self.embedding, self.embedding_how, ids)

    def inputs(self, ids: Ids) -> Inputs:
        """Rows of full ids in all tables that a body looks them up in."""
        if self.per_layer is None:
            return Inputs(self.embed(ids))
        # Gemma 3n has fewer rows here than tokens, and uses row 0 for ids after the last.
        known = np.where(ids < self.per_layer.spec.rows, ids, 0)
        return Inputs(self.embed(ids), self._values(self.per_layer, self._per_layer_how, known))

    def tied_inputs(self, rows: Rows) -> Inputs:
        """Head rows of a tied model, as embedding rows."""
        if rows.scales is None or rows.biases is None or self.head_how is None:
            return Inputs(rows.weight)
        return Inputs(PackedMatrix(rows.weight, rows.scales, rows.biases, self.head_how))

    def whole_bias(self) -> mx.array | None:
        """Bias of every row, ``[V]``; None if the head has none."""
        if self._bias is None:
            return None
        return self._read(self._bias, None, np.arange(self._bias.spec.rows))[0].flatten()

    @_on_own_stream
    def read(self, ids: Ids, spare: int = 0) -> Rows:
        bias = None if self._bias is None else self._read(self._bias, None, ids, spare)[0].flatten()
        weight, *packed = self._read(self.head_table, self.head_how, ids, spare)
        return Rows(weight, mx.array(np.pad(ids, (0, spare)).astype(np.int32)), bias, *packed)

    def tile(self, start: int, stored: np.ndarray, bias: mx.array | None) -> Rows:
        """Stored head rows ``start …`` on the device; ``bias`` is the bias of every row."""
        weight, *packed = self._send(stored, self.head_table.spec.dtype, self.head_how)
        end = start + len(stored)
        return Rows(weight, mx.arange(start, end), None if bias is None else bias[start:end], *packed)

    @_on_own_stream
    def reserve(self, rows: Rows, capacity: int) -> Rows:
        return _map(lambda part: _grown(part, capacity), rows)

    @_on_own_stream
    def write(self, buffer: Rows, start: int, rows: Rows) -> Rows:
        for whole, part in zip(buffer, rows, strict=True):
            if whole is not None and part is not None:
                # In place only if nothing else refers to the buffer: a step in flight makes it a full copy.
                whole[start : start + len(part)] = part
                mx.eval(whole)
        return buffer

    @_on_own_stream
    def first(self, rows: Rows, count: int) -> Rows:
        return _map(lambda part: part[:count], rows)

    @_on_own_stream
    def concatenate(self, first: Rows, second: Rows) -> Rows:
        joined = _map(lambda *parts: mx.concatenate(list(parts)), first, second)
        mx.eval([part for part in joined if part is not None])
        return joined

    def product(self, hidden: mx.array, rows: Rows) -> mx.array:
        if rows.scales is None or rows.biases is None:
            logits = hidden @ rows.weight.T
        else:
            logits = self._packed_product(hidden, rows.weight, rows.scales, rows.biases)
        return logits if rows.bias is None else logits + rows.bias

    def join(self, logits: list[mx.array]) -> mx.array:
        return mx.concatenate(logits, axis=-1)

    def nbytes(self, rows: Rows) -> int:
        return sum(part.nbytes for part in rows if part is not None) - rows.ids.nbytes

    def _packed_product(self, hidden: mx.array, *parts: mx.array) -> mx.array:
        """Logits of packed rows; ``parts``: weight, scales and biases."""
        count = len(parts[0])
        odd = count % self._multiple
        logits = []
        if count > odd:
            logits.append(self._multiply(hidden, *(part[: count - odd] for part in parts)))
        if odd:
            padding = [(0, self._multiple - odd), (0, 0)]
            rest = (mx.pad(part[count - odd :], padding) for part in parts)
            logits.append(self._multiply(hidden, *rest)[:, :odd])
        # MLX divides by the number of rows: with none, the process would crash.
        return mx.concatenate(logits, axis=-1) if logits else mx.zeros((len(hidden), 0), hidden.dtype)

    def _multiply(self, hidden: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        how = self.head_how
        assert how is not None
        return mx.quantized_matmul(
            hidden, weight, scales, biases, transpose=True, group_size=how.group_size, bits=how.bits
        )

    def _values(self, table: Table, how: Quantization | None, ids: Ids) -> mx.array:
        """Rows as floats."""
        weight, *packed = self._read(table, how, ids)
        if how is None:
            return weight
        scales, biases = packed
        return PackedMatrix(weight, scales, biases, how)[:]

    def _read(self, table: Table, how: Quantization | None, ids: Ids, spare: int = 0) -> list[mx.array]:
        """Rows ``[n + spare, hidden]``; for a quantized table: words, scales and biases."""

        def piece(ids: Ids) -> list[mx.array]:
            return self._send(table.read(ids), table.spec.dtype, how)

        step = max(1, CHUNK_BYTES // (table.spec.columns * 4))
        if len(ids) <= step and not spare:
            return piece(ids)
        wholes = [_grown(part, len(ids) + spare) for part in piece(ids[:step])]
        for start in range(step, len(ids), step):
            for whole, part in zip(wholes, piece(ids[start : start + step]), strict=True):
                whole[start : start + len(part)] = part
            mx.eval(wholes)
        return wholes

    def _send(self, stored: np.ndarray, dtype: str, how: Quantization | None) -> list[mx.array]:
        if how is None:
            return [as_array(stored, dtype).astype(self._dtype)]
        words, *floats = split_rows(stored, how)
        return [mx.array(words), *(as_array(part, how.dtype).astype(self._dtype) for part in floats)]


def as_array(array: np.ndarray, dtype: str) -> mx.array:
    """A copy on the device of an array in storage dtype."""
    return mx.array(array).view(DTYPES[dtype])


def greedy(logits: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    """Full and local ids ``[k]`` of the largest of ``logits [k, n]``; of equal ones the lowest full id.

    A row with a NaN, which equals nothing, gives :data:`NOT_A_NUMBER` as its full id.
    """
    tied = mx.where(logits == logits.max(axis=-1, keepdims=True), ids, NOT_A_NUMBER)
    local = mx.argmin(tied, axis=-1)
    return mx.take_along_axis(tied, local[:, None], axis=-1)[:, 0], local


def _map(function: Callable[..., mx.array], *rows: Rows) -> Rows:
    parts: Any = (None if each[0] is None else function(*each) for each in zip(*rows, strict=True))
    return Rows(*parts)


def _grown(part: mx.array, capacity: int) -> mx.array:
    grown = mx.zeros((capacity, *part.shape[1:]), dtype=part.dtype)
    grown[: len(part)] = part
    mx.eval(grown)
    return grown
