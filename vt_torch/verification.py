"""Tiles of the full head on the device, multiplied with the hidden states of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vt_core.tables import Table
from vt_core.vocabulary import Ids
from vt_torch.rows import as_tensor

#: A tile is converted into a buffer of this many bytes, or sent to the device from it.
TILE_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20, "mps": 32 << 20}

Transform = Callable[[torch.Tensor], torch.Tensor]


class TorchTile:
    """:class:`vt_core.verification.LogitTile` over a tensor ``[k, n]``."""

    def __init__(self, start: int, logits: torch.Tensor) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits

    def best(self) -> tuple[npt.NDArray[np.float32], Ids]:
        # torch.max gives the first of equal values.
        values, places = self._logits.max(dim=1)
        return values.float().cpu().numpy(), places.cpu().numpy()

    def mass(self, shift: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float64]:
        weights = self._logits.float() - torch.from_numpy(shift).to(self._logits.device)[:, None]
        # Summed in float32, which is what every device has; a tile is short.
        return weights.mul_(scale).exp_().sum(dim=1).cpu().numpy().astype(np.float64)

    def above(self, thresholds: npt.NDArray[np.float32]) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        limits = torch.from_numpy(thresholds).to(self._logits.device)[:, None]
        positions, places = torch.nonzero(self._logits.float() >= limits, as_tuple=True)
        logits = self._logits[positions, places].float()
        return positions.cpu().numpy(), places.cpu().numpy(), logits.cpu().numpy()

    def take(self, position: int, places: Ids) -> npt.NDArray[np.float32]:
        return self._logits[position, torch.from_numpy(places)].float().cpu().numpy()

    def put(self, position: int, places: Ids, logits: npt.NDArray[np.float32]) -> None:
        if self._logits.dtype != torch.float32:
            self._logits = self._logits.float()
        self._logits[position, torch.from_numpy(places)] = torch.from_numpy(logits).to(self._logits.device)


class HeadScan:
    """Reads the full head tile by tile; at most two tiles exist on the device at once."""

    def __init__(
        self,
        table: Table,
        bias: torch.Tensor | None,
        transform: Transform,
        device: torch.device,
        dtype: torch.dtype,
        tile_bytes: int | None = None,
    ) -> None:
        self._table, self._bias, self._transform = table, bias, transform
        self._device, self._dtype = device, dtype
        row_bytes = table.spec.columns * dtype.itemsize
        self._rows = max(1, (tile_bytes or TILE_BYTES.get(device.type, 32 << 20)) // row_bytes)
        self.tile_bytes = self._rows * row_bytes
        self._buffers: list[torch.Tensor] = []

    def tiles(self, hidden: torch.Tensor) -> Iterator[TorchTile]:
        """Logits of every row for ``hidden [k, hidden]``, in id order."""
        load = self._load_cuda if self._device.type == "cuda" else self._load
        for start, rows in load():
            bias = None if self._bias is None else self._bias[start : start + len(rows)]
            yield TorchTile(start, self._transform(F.linear(hidden, rows, bias)))

    def _stored(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Views of the stored rows, a tile's worth at a time."""
        spec = self._table.spec
        for tile in self._table.tiles(max(8 << 20, self._rows * spec.stride)):
            # The views are read-only and only read.
            rows = as_tensor(tile.rows, spec.dtype)
            for start in range(0, len(rows), self._rows):
                yield tile.start + start, rows[start : start + self._rows]

    def _load(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start, rows in self._stored():
            if rows.dtype == self._dtype and self._device.type == "cpu":
                yield start, rows
            else:
                yield start, self._buffer(0, False)[: len(rows)].copy_(rows)

    def _load_cuda(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The next tile travels on a stream of its own, from pinned memory, while this one is multiplied."""
        copying = torch.cuda.Stream(self._device)
        computing = torch.cuda.current_stream(self._device)
        copying.wait_stream(computing)  # what is in flight there may still use the buffers' memory
        free = [torch.cuda.Event() for _ in range(2)]  # the product that used a buffer is done
        ready: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
        try:
            for index, (start, rows) in enumerate(self._stored()):
                slot = index % 2
                pinned, target = self._buffer(2 + slot, True), self._buffer(slot, False)
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

    def _buffer(self, index: int, pinned: bool) -> torch.Tensor:
        while len(self._buffers) <= index:
            self._buffers.append(torch.empty(0))
        shape = (self._rows, self._table.spec.columns)
        if self._buffers[index].shape != shape:
            device = torch.device("cpu") if pinned else self._device
            self._buffers[index] = torch.empty(shape, dtype=self._dtype, device=device, pin_memory=pinned)
        return self._buffers[index]


def logit_transform(config: object) -> Transform:
    """What a transformers model does to its logits behind the head, by its configuration."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(text, "final_logit_softcapping", None)
    divisor = getattr(text, "logits_scaling", None)  # Granite
    factor = getattr(text, "logit_scale", None)  # Cohere

    def transform(logits: torch.Tensor) -> torch.Tensor:
        if factor is not None:
            logits = logits * factor
        if divisor is not None:
            logits = logits / divisor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return transform
