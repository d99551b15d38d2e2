"""Tiles of the full head on the device, multiplied with the hidden states of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vt_core.decode.rounding import Rounding
from vt_core.files import architectures
from vt_core.files.architectures import architecture
from vt_core.types import Ids
from vt_torch.products import Buffers, at_least, kernels_of
from vt_torch.rows import TorchRows, as_tensor

#: Size of a tile on accelerators.
TILE_BYTES = 32 << 20
#: Stored rows that are mapped at once, at least.
_MAPPED_BYTES = 8 << 20

#: Rows that MKL multiplies in one way, and the size of a product (rows times columns) that PyTorch hands on
#: to oneDNN. Measured: with both, none of 25,000 logits differed from the whole head's, in any float type,
#: with AVX2, AVX-512 and without either; without them most float32 ones did.
_GROUP, _SMALL_PRODUCT = 16, 16 * 16 * 16
#: Accelerators choose a kernel by the size of the product; from this many rows on it is the whole head's.
MANY_ROWS = 4096

Transform = Callable[[torch.Tensor], torch.Tensor]


class TorchTile:
    """:class:`vt_core.decode.tiles.LogitTile` over a tensor ``[k, n]``."""

    def __init__(self, start: int, logits: torch.Tensor) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits

    @cached_property
    def largest(self) -> npt.NDArray[np.float32]:
        return self._logits.amax(dim=1).float().cpu().numpy()

    def above(self, thresholds: npt.NDArray[np.float32]) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        rows = np.flatnonzero(self.largest >= thresholds)
        if len(rows) == 0:
            return rows, rows, np.empty(0, dtype=np.float32)
        near = self._logits[torch.from_numpy(rows)].float()
        if near.device.type == "cpu":  # numpy takes half of torch's time for a few rows
            found = near.numpy()
            positions, places = np.divmod(
                np.flatnonzero(found >= thresholds[rows, None]), np.int64(near.shape[1])
            )
            return rows[positions], places, found[positions, places]
        limits = torch.from_numpy(thresholds[rows]).to(near.device)[:, None]
        positions, places = torch.nonzero(near >= limits, as_tuple=True)
        logits = near[positions, places].cpu().numpy()
        return rows[positions.cpu().numpy()], places.cpu().numpy(), logits

    def mass(self, shift: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float64]:
        weights = self._logits.float() - torch.from_numpy(shift).to(self._logits.device)[:, None]
        # Summed in float32, which every device has; a tile is short.
        return weights.mul_(scale).exp_().sum(dim=1).cpu().numpy().astype(np.float64)

    def take(self, position: int, places: Ids) -> npt.NDArray[np.float32]:
        return self._logits[position, torch.from_numpy(places)].float().cpu().numpy()

    def put(self, position: int, places: Ids, logits: npt.NDArray[np.float32]) -> None:
        if self._logits.dtype != torch.float32:
            self._logits = self._logits.float()
        self._logits[position, torch.from_numpy(places)] = torch.from_numpy(logits).to(self._logits.device)
        self.__dict__.pop("largest", None)

    def first(self, count: int) -> TorchTile:
        return TorchTile(self.start, self._logits[:, :count])

    def positions(self, start: int, end: int) -> TorchTile:
        return TorchTile(self.start, self._logits[start:end])

    def restrict(self, allowed: npt.NDArray[np.bool_]) -> TorchTile:
        others = torch.from_numpy(~allowed).to(self._logits.device)
        return TorchTile(self.start, self._logits.masked_fill(others, -torch.inf))


class HeadScan:
    """:class:`vt_core.decode.tiles.HeadScan`; at most two tiles exist on the device at once."""

    def __init__(
        self,
        rows: TorchRows,
        count: int,
        transform: Transform | None,
        device: torch.device,
        dtype: torch.dtype,
        tile_bytes: int | None = None,
    ) -> None:
        """
        Args:
            rows: of the store.
            count: rows that the whole head has.
            transform: what the model does to its logits after the head; None where that is nothing.
            device: where to multiply.
            dtype: the run's float type.
            tile_bytes: size of a tile; None takes the fastest.
        """
        self._ops, self._count = rows, count
        self._table, self._bias = rows.head_table, rows.whole_bias()
        self._transform = transform
        self._device, self._dtype = device, dtype
        self._on_cpu = device.type == "cpu"
        self._tile_bytes = tile_bytes
        self._converted = Buffers()
        self._buffers: list[torch.Tensor] = []
        self.rounding = self._rounding()

    def tiles(self, hidden: torch.Tensor) -> Iterator[TorchTile]:
        products = self._timed if self._on_cpu else self._sent
        for start, logits in products(hidden):
            yield TorchTile(start, self._transformed(logits))

    def _timed(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of each tile by the kernel that is fastest on this CPU."""
        spec = self._table.spec
        kernel = at_least(kernels_of(spec, self._dtype), len(hidden))
        if self._tile_bytes is not None:
            kernel = replace(kernel, tile_bytes=self._tile_bytes)
        count = kernel.tile_rows(spec.columns)
        # Several pieces that are converted one by one make a tile: each tile has a cost of its own.
        most = count if self._tile_bytes is not None else max(count, _MAPPED_BYTES // spec.stride)
        for start, rows in self._stored(most):
            bias, pieces = self._tile_bias(start, rows), []
            for at in range(0, len(rows), count):
                piece = slice(at, at + count)
                offset = None if bias is None else bias[piece]
                pieces.append(kernel.logits(rows[piece], hidden, offset, self._converted))
            yield start, pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _sent(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of each tile on the device, in the run's float type."""
        for start, rows in self._load_cuda() if self._device.type == "cuda" else self._load():
            bias = self._tile_bias(start, rows)
            yield start, F.linear(hidden, rows, bias)

    def _tile_bias(self, start: int, rows: torch.Tensor) -> torch.Tensor | None:
        return None if self._bias is None else self._bias[start : start + len(rows)]

    def row_logits(self, hidden: torch.Tensor, ids: Ids) -> npt.NDArray[np.float32]:
        alike, places = ids, np.arange(len(ids))
        if self._on_cpu:
            alike, places = like_whole(ids, self._count, hidden.shape[1])
        rows = self._ops.read(alike)
        if not self._on_cpu:
            rows = self._ops.reserve(rows, min(self._count, max(len(ids), MANY_ROWS)))
        logits = self._transformed(self._ops.product(hidden, rows))
        return logits[0].float().cpu().numpy()[places]

    def _rounding(self) -> Rounding:
        # One unit for the product, one for what is done to its result. An accelerator may add up in the run's
        # float type.
        plain = self._transform is None and self._on_cpu
        offset = 0.0 if self._bias is None else float(self._bias.abs().max())
        return Rounding(str(self._dtype).removeprefix("torch."), 1 if plain else 2, offset)

    def _transformed(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self._transform is None else self._transform(logits)

    def _stored(self, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Views of the stored rows, ``count`` at a time."""
        spec = self._table.spec
        for tile in self._table.tiles(max(_MAPPED_BYTES, count * spec.stride)):
            # The views are read-only and only read.
            rows = as_tensor(tile.rows, spec.dtype)
            for start in range(0, len(rows), count):
                yield tile.start + start, rows[start : start + count]

    @cached_property
    def _rows(self) -> int:
        """Rows of a tile that is sent to the device."""
        row_bytes = self._table.spec.columns * self._dtype.itemsize
        return max(1, (self._tile_bytes or TILE_BYTES) // row_bytes)

    def _load(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Tiles in the run's float type on the device."""
        for start, rows in self._stored(self._rows):
            yield start, self._buffer(0)[: len(rows)].copy_(rows)

    def _load_cuda(self) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`_load`. The next tile is copied from pinned memory on a stream of its own, while this one
        is multiplied.
        """
        copying = torch.cuda.Stream(self._device)
        computing = torch.cuda.current_stream(self._device)
        copying.wait_stream(computing)  # work in flight may still use the memory of the buffers
        free = [torch.cuda.Event() for _ in range(2)]  # set once the product that used a buffer is done
        ready: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
        try:
            for index, (start, rows) in enumerate(self._stored(self._rows)):
                slot = index % 2
                pinned, target = self._buffer(2 + slot, True), self._buffer(slot)
                free[slot].synchronize()
                pinned[: len(rows)].copy_(rows)
                with torch.cuda.stream(copying):
                    target[: len(rows)].copy_(pinned[: len(rows)], non_blocking=True)
                    sent = torch.cuda.Event()
                    sent.record(copying)
                if ready is not None:
                    yield self._received(ready, computing)
                    free[1 - slot].record(computing)
                ready = (start, target[: len(rows)], sent)
            if ready is not None:
                yield self._received(ready, computing)
        finally:
            copying.synchronize()
            computing.synchronize()

    @staticmethod
    def _received(
        ready: tuple[int, torch.Tensor, torch.cuda.Event], computing: torch.cuda.Stream
    ) -> tuple[int, torch.Tensor]:
        start, rows, sent = ready
        computing.wait_event(sent)
        return start, rows

    def _buffer(self, index: int, pinned: bool = False) -> torch.Tensor:
        while len(self._buffers) <= index:
            self._buffers.append(torch.empty(0))
        shape = (self._rows, self._table.spec.columns)
        if self._buffers[index].shape != shape:
            device = torch.device("cpu") if pinned else self._device
            self._buffers[index] = torch.empty(shape, dtype=self._dtype, device=device, pin_memory=pinned)
        return self._buffers[index]


def like_whole(ids: Ids, count: int, columns: int) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Rows whose product with one position a CPU computes as it computes that of the whole head.

    MKL takes 4 to 16 float32 rows at a time and the last rows of a matrix otherwise, and PyTorch multiplies
    small matrices of 16-bit floats by itself. So the rows are a matrix of full groups that is not small, and
    then the last rows of the whole head.

    Args:
        ids: full ids, at least one.
        count: rows of the whole head.
        columns: width of a row.

    Returns:
        Full ids of the rows to multiply, and where ``ids`` are among them.
    """
    regular = count - count % _GROUP
    least = max(len(ids), _SMALL_PRODUCT // columns + 1)
    fill = np.full(-(-least // _GROUP) * _GROUP - len(ids), ids[0])
    alike = np.concatenate([ids, fill, np.arange(regular, count)])
    return alike, np.where(ids < regular, np.arange(len(ids)), len(ids) + len(fill) + ids - regular)


def logit_transform(config: Any) -> Transform:
    """What a transformers model does to its logits after the head, by its configuration."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    row = architecture(config.model_type, text.model_type)
    transform = architectures.logit_transform(row, lambda name: getattr(text, name, None))
    return partial(transform.apply, tanh=torch.tanh)
