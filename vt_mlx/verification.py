"""Tiles of the full head on the device, multiplied with the hidden states of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from vt_core.decode.verification import LogitTile, NumpyTile
from vt_core.files import architectures
from vt_core.files.architectures import architecture
from vt_core.files.dtypes import convert, from_float32, to_float32
from vt_core.files.tables import DequantizedTable
from vt_core.vocab.active import Ids
from vt_mlx.rows import MlxRows

#: Above 32 MiB the C library maps every buffer anew, two to three times slower; below 5 MiB a Metal
#: product does not fill the device. On a CPU a tile stays in the processor's cache.
TILE_BYTES = {"cpu": 2 << 20, "gpu": 16 << 20}

Transform = Callable[[mx.array], mx.array]


class MlxTile:
    """:class:`vt_core.decode.verification.LogitTile` over an array ``[k, n]``."""

    def __init__(self, start: int, logits: mx.array) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits.astype(mx.float32)

    def better(self, than: npt.NDArray[np.float32]) -> tuple[Ids, npt.NDArray[np.float32], Ids]:
        positions = np.flatnonzero(self._largest > than)
        values = self._largest[positions]
        if len(positions) == 0:
            return positions, values, positions
        # The first of equal values, said explicitly: MLX does not promise which one its argmax gives.
        near = self._logits[mx.array(positions)]
        equal = near == mx.array(values)[:, None]
        places = mx.where(equal, mx.arange(self.count), self.count).min(axis=1)
        return positions, values, np.array(places).astype(np.int64)

    def mass(self, shift: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float64]:
        weights = mx.exp((self._logits - mx.array(shift)[:, None]) * scale)
        return np.array(weights.sum(axis=1)).astype(np.float64)

    def above(self, thresholds: npt.NDArray[np.float32]) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        rows = np.flatnonzero(self._largest >= thresholds)
        if len(rows) == 0:
            return rows, rows, np.empty(0, dtype=np.float32)
        # MLX has no search for the places of true values.
        near = NumpyTile(self.start, np.array(self._logits[mx.array(rows)]))
        positions, places, logits = near.above(thresholds[rows])
        return rows[positions], places, logits

    def take(self, position: int, places: Ids) -> npt.NDArray[np.float32]:
        return np.array(self._logits[position][mx.array(places)])

    def put(self, position: int, places: Ids, logits: npt.NDArray[np.float32]) -> None:
        self._logits[position, mx.array(places)] = mx.array(logits)
        self.__dict__.pop("_largest", None)

    def first(self, count: int) -> MlxTile:
        return MlxTile(self.start, self._logits[:, :count])

    @cached_property
    def _largest(self) -> npt.NDArray[np.float32]:
        """``[k]``."""
        return np.array(self._logits.max(axis=1))


class HeadScan:
    """Reads the full head tile by tile; one tile exists on the device at a time."""

    def __init__(
        self,
        rows: MlxRows,
        transform: Transform | None,
        device: str,
        dtype: mx.Dtype,
        tile_bytes: int | None = None,
    ) -> None:
        self._ops, self._table, self._bias = rows, rows.head_table, rows.whole_bias()
        self._transform, self._dtype = transform, dtype
        # MLX's CPU build multiplies with one thread, in time linear in k; numpy's library does far better
        # there, on packed rows too (measured with one thread on a busy machine): a 4-bit row of
        # 896 takes 0.7 us to dequantize and multiply with one state against 1.9 in MLX, and some 0.9 against
        # 16 times as much with 16. But half floats MLX adds up in their own type there, which only MLX does.
        how = rows.head_how
        on_host = device == "cpu" and not (how is not None and dtype != mx.float32)
        self._multiply = self._on_host if on_host else self._on_device
        if on_host and how is not None:
            self._table = DequantizedTable(rows.head_table, how)
        spec = self._table.spec
        row_bytes = spec.row_bytes if spec.dtype == "uint32" else spec.columns * dtype.size
        self._rows = max(1, (tile_bytes or TILE_BYTES[device]) // row_bytes)
        self.tile_bytes = self._rows * row_bytes
        self._name = str(dtype).removeprefix("mlx.core.")

    def tiles(self, hidden: mx.array) -> Iterator[LogitTile]:
        """Logits of every row for ``hidden [k, hidden]``, in id order."""
        yield from self._multiply(hidden)

    def _stored(self) -> Iterator[tuple[int, np.ndarray]]:
        for tile in self._table.tiles(max(8 << 20, self._rows * self._table.spec.stride)):
            for start in range(0, len(tile.rows), self._rows):
                yield tile.start + start, tile.rows[start : start + self._rows]

    def _on_device(self, hidden: mx.array) -> Iterator[LogitTile]:
        for start, stored in self._stored():
            logits = self._ops.product(hidden, self._ops.tile(start, stored, self._bias))
            if self._transform is not None:
                logits = self._transform(logits)
            # One at a time, or every tile waits in memory for the last.
            mx.eval(logits)
            yield MlxTile(start, logits)

    def _on_host(self, hidden: mx.array) -> Iterator[LogitTile]:
        states = np.array(hidden.astype(mx.float32))
        bias = None if self._bias is None else np.array(self._bias.astype(mx.float32))
        stored = self._table.spec.dtype
        for start, rows in self._stored():
            weight = to_float32(convert(rows, stored, self._name), self._name)
            # This way round the product is up to a third faster.
            logits = self._rounded((weight @ states.T).T)
            if bias is not None:
                logits = self._rounded(logits + bias[start : start + len(rows)])
            if self._transform is not None:
                transformed = self._transform(mx.array(logits).astype(self._dtype))
                logits = np.array(transformed.astype(mx.float32))
            yield NumpyTile(start, logits)

    def _rounded(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Values of the run's float type, in float32."""
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
