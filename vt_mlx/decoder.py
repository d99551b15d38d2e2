"""A model body with its cache and head: :class:`vt_core.decode.decoder.Decoder` for MLX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache

from vt_core.decode.decoder import Decoder
from vt_core.decode.types import Slot
from vt_core.vocab.heads import Head
from vt_mlx.body import LayerRows, RowEmbedding, RowHead
from vt_mlx.caches import CacheLog, cache_bytes, copy_caches, export_caches, restore_caches
from vt_mlx.device import ModelStream, on_device, peak_memory
from vt_mlx.rows import Inputs, MlxRows, Rows, greedy
from vt_mlx.together import batch_caches, divides, padded_rows, prepare
from vt_mlx.verification import HeadScan, logit_transform


@dataclass(slots=True, eq=False)
class MlxSlot(Slot[mx.array]):
    """A slot with mlx-lm's caches."""

    caches: list[Any] = field(kw_only=True)
    log: CacheLog = field(kw_only=True)


class MlxDecoder(Decoder[mx.array, MlxSlot]):
    """See :class:`vt_core.decode.decoder.Decoder`."""

    last_token_alone = True  # as in mlx-lm
    together_tolerance = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}  # noqa: RUF012

    def __init__(
        self,
        model: nn.Module,
        embedding: RowEmbedding,
        layers: LayerRows | None,
        output: RowHead,
        rows: MlxRows,
        head: Head[Rows, mx.array],
        *,
        tied: bool,
        stream: ModelStream,
        dtype: mx.Dtype,
        tile_bytes: int | None,
    ) -> None:
        # A decoded token of a tied model is embedded by its head row, except where the layers need rows that
        # no head holds.
        tied = tied and rows.per_layer is None
        super().__init__(
            head,
            rows,
            device="gpu" if stream.device.type == mx.DeviceType.gpu else "cpu",
            dtype=str(dtype).removeprefix("mlx.core."),
            tied=tied,
            # Following indexes one matrix before the choice is known.
            can_follow=tied and head.name != "split",
            transform=logit_transform(model.args),
            framework_name=f"mlx-lm's {model.model_type}",
        )
        self._model, self._stream = model, stream
        self._embedding, self._layers = embedding, layers
        self._output = output
        output.set_head(head)
        prepare(model)
        self._tile_bytes = tile_bytes

    def _cache_bytes(self, slot: MlxSlot) -> int:
        return cache_bytes(slot.caches) + slot.log.nbytes

    def _export_caches(self, slot: MlxSlot) -> tuple[dict[str, np.ndarray], Any]:
        return export_caches(slot.caches)

    def _restore_caches(self, slot: MlxSlot, arrays: Mapping[str, np.ndarray], state: Any) -> None:
        restore_caches(slot.caches, arrays, state)

    def peak_memory(self) -> int | None:
        return peak_memory(self._stream.device)

    def _context(self) -> AbstractContextManager[object]:
        return on_device(self._stream)

    # The framework's caches.

    def _new_slot(self) -> MlxSlot:
        caches = make_prompt_cache(self._model)
        log = CacheLog(caches)
        return MlxSlot(caches=caches, log=log, can_rewind=log.can_rewind)

    def _copy_slot(self, slot: MlxSlot) -> MlxSlot:
        other = self._new_slot()
        other.text = list(slot.text)
        copy_caches(slot.caches, other.caches)
        return other

    def _empty_caches(self, slot: MlxSlot) -> None:
        slot.caches = make_prompt_cache(self._model)
        slot.log = CacheLog(slot.caches)

    def _rewind_caches(self, slot: MlxSlot, count: int) -> int:
        # What still holds the head's buffer (a step in flight, its embedding table) would make the next write
        # copy it whole: 9 to 22 ms for 29 MB instead of 0.1.
        self._clear()
        mx.synchronize()
        return slot.log.rewind(count)

    def _cut_caches(self, slot: MlxSlot, count: int) -> bool:
        return slot.log.cut(count)

    def _settle_caches(self, slot: MlxSlot) -> None:
        slot.log.settle()

    def _clear(self) -> None:
        """Drop what the last call looked up and left."""
        for part in (self._embedding, self._layers, self._output):
            if part is not None:
                part.clear()

    def _release(self) -> None:
        self._clear()
        mx.clear_cache()

    # Running the body.

    def _run(self, slot: MlxSlot, inputs: Inputs, index: mx.array, positions: int = 1) -> mx.array:
        self._output.set_positions(positions)
        self._look_up_in(inputs, index)
        return self._model(index, cache=slot.caches)[0]

    def _look_up_in(self, inputs: Inputs, index: mx.array) -> None:
        """Let the model look up the tokens of its next call, ``index``, in the rows of ``inputs``."""
        self._embedding.set_table(inputs.embedding)
        if inputs.per_layer is not None:
            assert self._layers is not None
            self._layers.set_rows(inputs.per_layer[index])

    def _run_steps(self, slot: MlxSlot, inputs: Inputs, index: mx.array, positions: int) -> mx.array:
        slot.log.record(index.shape[1])
        return self._run(slot, inputs, index, positions)

    def _divides(self, slots: Sequence[MlxSlot]) -> bool:
        return divides([slot.caches for slot in slots])

    def _run_together(
        self, slots: list[MlxSlot], inputs: Inputs, index: mx.array, counts: list[int]
    ) -> mx.array:
        rows, places = padded_rows(counts)
        for slot, count in zip(slots, counts, strict=True):
            slot.log.record(count)
        self._output.set_positions(places)
        index = index[0][rows]
        self._look_up_in(inputs, index)
        caches = batch_caches([slot.caches for slot in slots], counts)
        return self._model(index, cache=caches)[0]

    def _finish_piece(self, slot: MlxSlot) -> None:
        # Compute what a piece leaves in the caches, and drop the rest.
        mx.eval([layer.state for layer in slot.caches])
        mx.clear_cache()

    def _every_state(self) -> mx.array:
        mx.eval(self._output.states)
        return self._output.states

    def _hidden(self) -> mx.array:
        return self._output.hidden

    def _head_logits(self) -> mx.array:
        return self._output.logits

    def _scan_head(self, hidden: mx.array) -> HeadScan:
        return HeadScan(
            self._rows,
            self.head.vocabulary.rows,
            self._transform,
            self.device,
            hidden.dtype,
            self._tile_bytes,
        )

    # Arrays.

    def _greedy(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        pieces = [piece.ids for piece in self.head.pieces]
        return greedy(logits, pieces[0] if len(pieces) == 1 else mx.concatenate(pieces))

    def _top_probability(self, logits: mx.array) -> mx.array:
        return mx.softmax(logits.astype(mx.float32), axis=-1).max(axis=-1)

    def _start(self, arrays: list[mx.array]) -> None:
        mx.async_eval(*arrays)

    def _index(self, index: npt.NDArray[np.int64]) -> mx.array:
        return mx.array(index.astype(np.int32))[None]

    def _to_host(self, array: mx.array) -> npt.NDArray[np.float32]:
        return np.array(array.astype(mx.float32))

    def _concatenate(self, arrays: list[mx.array]) -> mx.array:
        return mx.concatenate(arrays)

    def _all_finite(self, array: mx.array) -> bool:
        return bool(mx.isfinite(array).all().item())

    def _equal(self, first: mx.array, second: mx.array) -> bool:
        return bool(mx.array_equal(first, second).item())
