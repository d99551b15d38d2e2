"""The full head where its rows are stored as integers: tiles, multiplied as the reduced head's rows are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from vt_core.decode.rounding import Rounding
from vt_core.types import Ids
from vt_torch.integers import Digits
from vt_torch.rows import Rows, TorchRows, as_tensor
from vt_torch.verification import MANY_ROWS, TorchTile, Transform

#: Bytes of a tile. A CPU multiplies it where it lies: of 0.6 to 10 MiB, 2.5 to 10 took equally long.
TILE_BYTES = {"cpu": 5 << 20, "cuda": 16 << 20, "mps": 16 << 20}


class IntegerScan:
    """:class:`vt_core.decode.tiles.HeadScan`. Nothing is quantized or, on a CPU, copied while it runs."""

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
            tile_bytes: bytes of integers that are multiplied at once; None takes the fastest.
        """
        self._ops, self._count, self._transform, self._device = rows, count, transform, device
        self._table, self._bias, self._scales = rows.head_table, rows.whole_bias(), rows.whole_scales()
        spec = self._table.spec
        self._rows = max(1, (tile_bytes or TILE_BYTES.get(device.type, 16 << 20)) // spec.stride)
        self.tile_bytes = self._rows * spec.stride
        self.rounding = self._rounding(dtype)

    def tiles(self, hidden: torch.Tensor) -> Iterator[TorchTile]:
        factor = self._ops.as_factor(hidden)
        for tile in self._table.tiles(self.tile_bytes):
            part = slice(tile.start, tile.start + len(tile.rows))
            numbers = as_tensor(tile.rows, "int8").to(self._device)
            bias = None if self._bias is None else self._bias[part]
            ids = torch.arange(part.start, part.stop, device=self._device)
            yield TorchTile(tile.start, self._logits(factor, Rows(numbers, ids, bias, self._scales[part])))

    def row_logits(self, hidden: torch.Tensor, ids: Ids) -> npt.NDArray[np.float32]:
        rows = self._ops.read(ids)
        if self._device.type != "cpu":
            rows = self._ops.reserve(rows, min(self._count, max(len(ids), MANY_ROWS)))
        return self._logits(self._ops.as_factor(hidden), rows)[0].float().cpu().numpy()[: len(ids)]

    def _logits(self, factor: torch.Tensor | Digits, rows: Rows) -> torch.Tensor:
        logits = self._ops.quantized_product(factor, rows)
        return logits if self._transform is None else self._transform(logits)

    def _rounding(self, dtype: torch.dtype) -> Rounding:
        offset = 0.0 if self._bias is None else float(self._bias.abs().max())
        if self._device.type == "cpu":
            # Sums of whole numbers are exact. What the model does to them afterwards may round.
            return Rounding("float32", 0 if self._transform is None else 1, offset)
        return Rounding(str(dtype).removeprefix("torch."), 2, offset)
