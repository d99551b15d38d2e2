"""Tiles of the full head on the device, multiplied with the hidden states of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vt_core.files import architectures
from vt_core.files.architectures import architecture
from vt_core.files.tables import Table
from vt_core.vocab.active import Ids
from vt_torch.device import DTYPES, multiplies
from vt_torch.quantized import quantize_rows
from vt_torch.rows import as_tensor

#: A tile is converted into a buffer of this many bytes, or sent to the device from it. On a CPU it stays in
#: the processor's cache (2, 4 and 8 MiB took equally long, 1 and 16 MiB longer), unless rows are multiplied
#: where they lie: then fewer products are better (16 MiB took four fifths of 4 MiB's time).
TILE_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20, "mps": 32 << 20}
UNCONVERTED_TILE_BYTES = 16 << 20

#: Up to so many positions a CPU multiplies as they are; more are made a multiple.
_ANY_COUNT, _GOOD_COUNT = 8, 16

Transform = Callable[[torch.Tensor], torch.Tensor]


class TorchTile:
    """:class:`vt_core.decode.verification.LogitTile` over a tensor ``[k, n]``."""

    def __init__(self, start: int, logits: torch.Tensor) -> None:
        self.start, self.count = start, logits.shape[1]
        self._logits = logits

    def better(self, than: npt.NDArray[np.float32]) -> tuple[Ids, npt.NDArray[np.float32], Ids]:
        positions = np.flatnonzero(self._largest > than)
        places = np.empty(0, dtype=np.int64)
        if len(positions):
            # torch.max gives the first of equal values. It takes several times what amax takes, and few
            # tiles hold a better one.
            places = self._logits[torch.from_numpy(positions)].max(dim=1).indices.cpu().numpy()
        return positions, self._largest[positions], places

    def mass(self, shift: npt.NDArray[np.float32], scale: float) -> npt.NDArray[np.float64]:
        weights = self._logits.float() - torch.from_numpy(shift).to(self._logits.device)[:, None]
        # Summed in float32, which is what every device has; a tile is short.
        return weights.mul_(scale).exp_().sum(dim=1).cpu().numpy().astype(np.float64)

    def above(self, thresholds: npt.NDArray[np.float32]) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        rows = np.flatnonzero(self._largest >= thresholds)
        if len(rows) == 0:
            return rows, rows, np.empty(0, dtype=np.float32)
        near = self._logits[torch.from_numpy(rows)].float()
        limits = torch.from_numpy(thresholds[rows]).to(near.device)[:, None]
        positions, places = torch.nonzero(near >= limits, as_tuple=True)
        logits = near[positions, places].cpu().numpy()
        return rows[positions.cpu().numpy()], places.cpu().numpy(), logits

    def take(self, position: int, places: Ids) -> npt.NDArray[np.float32]:
        return self._logits[position, torch.from_numpy(places)].float().cpu().numpy()

    def put(self, position: int, places: Ids, logits: npt.NDArray[np.float32]) -> None:
        if self._logits.dtype != torch.float32:
            self._logits = self._logits.float()
        self._logits[position, torch.from_numpy(places)] = torch.from_numpy(logits).to(self._logits.device)
        self.__dict__.pop("_largest", None)

    def first(self, count: int) -> TorchTile:
        return TorchTile(self.start, self._logits[:, :count])

    @cached_property
    def _largest(self) -> npt.NDArray[np.float32]:
        """``[k]``."""
        return self._logits.amax(dim=1).float().cpu().numpy()


class HeadScan:
    """Reads the full head tile by tile; at most two tiles exist on the device at once."""

    def __init__(
        self,
        table: Table,
        bias: torch.Tensor | None,
        transform: Transform | None,
        device: torch.device,
        dtype: torch.dtype,
        tile_bytes: int | None = None,
        quantized: bool = False,
    ) -> None:
        self._table, self._bias, self._transform = table, bias, transform
        self._device, self._dtype = device, dtype
        self._quantized = quantized
        # A CPU without instructions for this type multiplies many positions one by one.
        self._widens = device.type == "cpu" and not multiplies(dtype) and not quantized
        # On a CPU quantized rows are whole numbers in float32.
        widened = self._widens or (quantized and device.type == "cpu")
        row_bytes = table.spec.columns * (torch.float32 if widened else dtype).itemsize
        converts = device.type != "cpu" or widened or DTYPES[table.spec.dtype] != dtype
        best = TILE_BYTES.get(device.type, 32 << 20) if converts else UNCONVERTED_TILE_BYTES
        self._rows = max(1, (tile_bytes or best) // row_bytes)
        self.tile_bytes = self._rows * row_bytes
        self._buffers: list[torch.Tensor] = []

    def tiles(self, hidden: torch.Tensor) -> Iterator[TorchTile]:
        """Logits of every row for ``hidden [k, hidden]``, in id order."""
        load = self._load_cuda if self._device.type == "cuda" else self._load
        on_cpu = self._device.type == "cpu"
        for start, rows in load(torch.float32 if self._widens and len(hidden) > 1 else self._dtype):
            bias = None if self._bias is None else self._bias[start : start + len(rows)]
            if self._quantized:
                logits = _quantized_product(rows, hidden, bias)
            elif on_cpu:
                bias = None if bias is None else bias.to(rows.dtype)
                logits = _product(rows, hidden.to(rows.dtype), bias).to(self._dtype)
            else:
                logits = F.linear(hidden, rows, bias)
            yield TorchTile(start, logits if self._transform is None else self._transform(logits))

    def _stored(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Views of the stored rows, a tile's worth at a time."""
        spec = self._table.spec
        for tile in self._table.tiles(max(8 << 20, self._rows * spec.stride)):
            # The views are read-only and only read.
            rows = as_tensor(tile.rows, spec.dtype)
            for start in range(0, len(rows), self._rows):
                yield tile.start + start, rows[start : start + self._rows]

    def _load(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        for start, rows in self._stored():
            if rows.dtype == dtype and self._device.type == "cpu":
                yield start, rows
            else:
                yield start, self._buffer(0, dtype)[: len(rows)].copy_(rows)

    def _load_cuda(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """The next tile travels on a stream of its own, from pinned memory, while this one is multiplied."""
        copying = torch.cuda.Stream(self._device)
        computing = torch.cuda.current_stream(self._device)
        copying.wait_stream(computing)  # what is in flight there may still use the buffers' memory
        free = [torch.cuda.Event() for _ in range(2)]  # the product that used a buffer is done
        ready: tuple[int, torch.Tensor, torch.cuda.Event] | None = None
        try:
            for index, (start, rows) in enumerate(self._stored()):
                slot = index % 2
                pinned, target = self._buffer(2 + slot, dtype, True), self._buffer(slot, dtype)
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

    def _buffer(self, index: int, dtype: torch.dtype, pinned: bool = False) -> torch.Tensor:
        while len(self._buffers) <= index:
            self._buffers.append(torch.empty(0))
        shape = (self._rows, self._table.spec.columns)
        if self._buffers[index].shape != shape or self._buffers[index].dtype != dtype:
            device = torch.device("cpu") if pinned else self._device
            self._buffers[index] = torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        return self._buffers[index]


def _product(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What ``F.linear(hidden, rows, bias)`` gives, for 2 to 32 positions in float32 in half to two thirds of
    its time on a CPU.
    """
    count = len(hidden)
    if count == 1 or rows.dtype != torch.float32:
        return F.linear(hidden, rows, bias)
    if count > _ANY_COUNT:
        # MKL takes 132 ms for 15 positions of Gemma's head and 54 for 16, 164 for 31 and 88 for 32.
        hidden = F.pad(hidden, (0, 0, 0, -count % _GOOD_COUNT))
    columns = hidden.T
    logits = rows @ columns if bias is None else torch.addmm(bias[:, None], rows, columns)
    return logits.T[:count]


def _quantized_product(rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What the quantized head gives for float rows that are not quantized yet: summed up in float32 on a CPU,
    as the kernels there do, and rounded once.
    """
    numbers, scales = quantize_rows(rows)
    if hidden.device.type == "cpu":
        logits = _product(numbers, hidden.float(), None).mul_(scales.float()).to(hidden.dtype)
    else:
        logits = F.linear(hidden, numbers.to(hidden.dtype).mul_(scales[:, None]))
    return logits if bias is None else logits + bias


def logit_transform(config: Any) -> Transform:
    """What a transformers model does to its logits after the head, by its configuration."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    row = architecture(config.model_type, text.model_type)
    transform = architectures.logit_transform(row, lambda name: getattr(text, name, None))
    return partial(transform.apply, tanh=torch.tanh)
