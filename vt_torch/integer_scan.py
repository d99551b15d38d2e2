"""The full head where its rows are stored as integers: tiles, multiplied as the reduced head's rows are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from vt_core.decode.rounding import Rounding
from vt_core.types import Ids
from vt_torch.integers import Digits
from vt_torch.rows import Rows, as_tensor
from vt_torch.verification import MANY_ROWS, HeadScan, TorchTile

#: Bytes of a tile. A CPU multiplies it where it lies: of 0.6 to 10 MiB, 2.5 to 10 took equally long.
TILE_BYTES = {"cpu": 5 << 20, "cuda": 16 << 20, "mps": 16 << 20}


class IntegerScan(HeadScan):
    """Nothing is quantized or, on a CPU, copied while it runs. ``tile_bytes`` are bytes of integers."""

    def tiles(self, hidden: torch.Tensor) -> Iterator[TorchTile]:
        factor, scales, spec = self._ops.as_factor(hidden), self._ops.whole_scales(), self._table.spec
        tile_bytes = self._tile_bytes or TILE_BYTES.get(self._device.type, 16 << 20)
        for tile in self._table.tiles(max(tile_bytes // spec.stride, 1) * spec.stride):
            part = slice(tile.start, tile.start + len(tile.rows))
            numbers = as_tensor(tile.rows, "int8").to(self._device)
            ids = torch.arange(part.start, part.stop, device=self._device)
            rows = Rows(numbers, ids, self._tile_bias(tile.start, numbers), scales[part])
            yield TorchTile(tile.start, self._logits(factor, rows))

    def row_logits(self, hidden: torch.Tensor, ids: Ids) -> npt.NDArray[np.float32]:
        rows = self._ops.read(ids)
        if not self._on_cpu:
            rows = self._ops.reserve(rows, min(self._count, max(len(ids), MANY_ROWS)))
        return self._logits(self._ops.as_factor(hidden), rows)[0].float().cpu().numpy()[: len(ids)]

    def _logits(self, factor: torch.Tensor | Digits, rows: Rows) -> torch.Tensor:
        return self._transformed(self._ops.quantized_product(factor, rows))

    def _rounding(self) -> Rounding:
        rounding = super()._rounding()
        if not self._on_cpu:
            return rounding
        # Sums of whole numbers are exact. What the model does to them afterwards may round.
        return replace(rounding, dtype="float32", units=0 if self._transform is None else 1)
