"""Tiles of the full head on the device, multiplied with the hidden states of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from vt_core.decode.rounding import Rounding
from vt_core.decode.tiles import LogitTile, NumpyTile
from vt_core.files import architectures
from vt_core.files.architectures import architecture
from vt_core.files.dtypes import convert, from_float32, to_float32
from vt_core.files.tables import DequantizedTable
from vt_core.types import Ids
from vt_mlx.rows import MlxRows

#: Above 32 MiB the C library maps every buffer anew, which is two to three times slower. Below 5 MiB a
#: product on Metal does not fill the device. On a CPU a tile stays in the processor's cache.
TILE_BYTES = {"cpu": 2 << 20, "gpu": 16 << 20}

#: A GPU chooses a kernel by the size of the product; from this many rows on it is the whole head's.
MANY_ROWS = 4096

Transform = Callable[[mx.array], mx.array]


class MlxTile:
    """:class:`vt_core.decode.tiles.LogitTile` over an array ``[k, n]``."""

    def __init__(self, start: int, logits: mx.array) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits.astype(mx.float32)

    @cached_property
    def largest(self) -> npt.NDArray[np.float32]:
        return np.array(self._logits.max(axis=1))

    def above(self, thresholds: npt.NDArray[np.float32]) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        rows = np.flatnonzero(self.largest >= thresholds)
        if len(rows) == 0:
            return rows, rows, np.empty(0, dtype=np.float32)
        # MLX has no search for the places of true values.
        near = NumpyTile(self.start, np.array(self._logits[mx.array(rows)]))
        positions, places, logits = near.above(thresholds[rows])
        return rows[positions], places, logits

    def mass(self, shift: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float64]:
        weights = mx.exp((self._logits - mx.array(shift)[:, None]) * scale)
        return np.array(weights.sum(axis=1)).astype(np.float64)

    def take(self, position: int, places: Ids) -> npt.NDArray[np.float32]:
        return np.array(self._logits[position][mx.array(places)])

    def put(self, position: int, places: Ids, logits: npt.NDArray[np.float32]) -> None:
        self._logits[position, mx.array(places)] = mx.array(logits)
        self.__dict__.pop("largest", None)

    def first(self, count: int) -> MlxTile:
        return MlxTile(self.start, self._logits[:, :count])

    def positions(self, start: int, end: int) -> MlxTile:
        return MlxTile(self.start, self._logits[start:end])

    def restrict(self, allowed: npt.NDArray[np.bool_]) -> MlxTile:
        return MlxTile(self.start, mx.where(mx.array(allowed), self._logits, -mx.inf))


class HeadScan:
    """:class:`vt_core.decode.tiles.HeadScan`; one tile exists on the device at a time."""

    def __init__(
        self,
        rows: MlxRows,
        count: int,
        transform: Transform | None,
        device: str,
        dtype: mx.Dtype,
        tile_bytes: int | None = None,
    ) -> None:
        """
        Args:
            rows: of the store.
            count: rows that the whole head has.
            transform: what the model does to its logits after the head; None where that is nothing.
            device: ``cpu`` or ``gpu``.
            dtype: the run's float type.
            tile_bytes: size of a tile; None takes the fastest.
        """
        self._ops, self._count = rows, count
        self._table, self._bias = rows.head_table, rows.whole_bias()
        self._transform, self._dtype = transform, dtype
        self._on_cpu = device == "cpu"
        # MLX's CPU build multiplies with one thread, in time linear in k. numpy's library does far better, on
        # packed rows too: a 4-bit row of 896 takes 0.7 us to dequantize and multiply with one state, against
        # 1.9 us in MLX, and some 0.9 us with 16 states, against 16 times as much. But MLX adds up products of
        # packed rows in half floats, which only MLX does.
        how = rows.head_how
        on_host = self._on_cpu and not (how is not None and dtype != mx.float32)
        self._multiply = self._on_host if on_host else self._on_device
        if on_host and how is not None:
            self._table = DequantizedTable(rows.head_table, how)
        spec = self._table.spec
        row_bytes = spec.row_bytes if spec.dtype == "uint32" else spec.columns * dtype.size
        self._rows = max(1, (tile_bytes or TILE_BYTES[device]) // row_bytes)
        self.tile_bytes = self._rows * row_bytes
        self._name = str(dtype).removeprefix("mlx.core.")
        # One unit for the product, one for what is done to its result. A GPU may add up in another order with
        # half floats in between.
        offset = 0.0 if self._bias is None else float(np.abs(np.array(self._bias.astype(mx.float32))).max())
        plain = transform is None and self._on_cpu and self._bias is None
        self.rounding = Rounding(self._name, 1 if plain else 2, offset)

    def tiles(self, hidden: mx.array) -> Iterator[LogitTile]:
        yield from self._multiply(hidden)

    def row_logits(self, hidden: mx.array, ids: Ids) -> npt.NDArray[np.float32]:
        rows = self._ops.read(ids)
        if not self._on_cpu:
            rows = self._ops.reserve(rows, min(self._count, max(len(ids), MANY_ROWS)))
        logits = self._ops.product(hidden, rows)
        if self._transform is not None:
            logits = self._transform(logits)
        return np.array(logits[0, : len(ids)].astype(mx.float32))

    def _stored(self) -> Iterator[tuple[int, np.ndarray]]:
        for tile in self._table.tiles(max(8 << 20, self._rows * self._table.spec.stride)):
            for start in range(0, len(tile.rows), self._rows):
                yield tile.start + start, tile.rows[start : start + self._rows]

    def _on_device(self, hidden: mx.array) -> Iterator[LogitTile]:
        for start, stored in self._stored():
            logits = self._ops.product(hidden, self._ops.tile(start, stored, self._bias))
            if self._transform is not None:
                logits = self._transform(logits)
            # Evaluated one by one, or every tile would wait in memory for the last.
            mx.eval(logits)
            yield MlxTile(start, logits)

    def _on_host(self, hidden: mx.array) -> Iterator[LogitTile]:
        states = np.array(hidden.astype(mx.float32))
        bias = None if self._bias is None else np.array(self._bias.astype(mx.float32))
        stored = self._table.spec.dtype
        for start, rows in self._stored():
            weight = to_float32(convert(rows, stored, self._name), self._name)
            # In this order the product is up to a third faster.
            logits = self._rounded((weight @ states.T).T)
            if bias is not None:
                logits = self._rounded(logits + bias[start : start + len(rows)])
            if self._transform is not None:
                transformed = self._transform(mx.array(logits).astype(self._dtype))
                logits = np.array(transformed.astype(mx.float32))
            yield NumpyTile(start, logits)

    def _rounded(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rounded to the run's float type, as float32."""
        return logits if self._name == "float32" else to_float32(from_float32(logits, self._name), self._name)


def logit_transform(arguments: Any) -> Transform | None:
    """What an mlx-lm model does to its logits after the head, by its arguments; None for nothing."""
    # The language model inside a model has its arguments as config.json has them, or parsed (Llama 4).
    text = getattr(arguments, "text_config", None) or {}
    text = text if isinstance(text, dict) else vars(text)
    row = architecture(getattr(arguments, "model_type", None), text.get("model_type"))
    transform = architectures.logit_transform(
        row, lambda name: getattr(arguments, name, text.get(name)), in_mlx=True
    )
    return None if transform.changes_nothing else partial(transform.apply, tanh=mx.tanh)
