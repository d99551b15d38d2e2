"""A model body with its cache and head: :class:`vt_core.decode.backend.Decoder` for MLX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache

from vt_core.decode.sampling import Sampler
from vt_core.decode.scoring import POSITIONS, Scored, log_probabilities
from vt_core.decode.verification import Draft, LogitTile, verify
from vt_core.errors import BackendError, ModelError
from vt_core.files.adapters import LowRank
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tables import ScaledTable, Table, open_tables
from vt_core.vocab.active import Ids
from vt_core.vocab.heads import Head, head_class
from vt_mlx.adapters import adapt
from vt_mlx.body import LayerRows, RowEmbedding, RowHead, load_body
from vt_mlx.caches import CacheLog
from vt_mlx.device import peak_memory, pick_device, pick_dtype, reset_peak
from vt_mlx.rows import Inputs, MlxRows, greedy
from vt_mlx.verification import HeadScan, logit_transform

PREFILL_TOKENS = 2048  #: tokens of a prompt that run at once; bounds the memory of attention scores


@dataclass(slots=True)
class Step:
    """One decoded position, on the device, possibly still to be computed."""

    hidden: mx.array  #: ``[1, hidden]``, the input of the head
    logits: mx.array  #: ``[1, n]`` of the active rows, in the run's dtype
    token: mx.array  #: greedy choice, full id ``[1]``
    local: mx.array  #: the same as local id ``[1]``
    confidence: mx.array | None  #: its probability among the active rows; None on the full head


class MlxDecoder:
    """See :class:`vt_core.decode.backend.Decoder`."""

    def __init__(
        self,
        model: nn.Module,
        embedding: RowEmbedding,
        layers: LayerRows | None,
        output: RowHead,
        rows: MlxRows,
        head: Head,
        *,
        tied: bool,
        device: mx.Device,
        dtype: mx.Dtype,
        tile_bytes: int | None,
    ) -> None:
        self.head = head
        self.device = "gpu" if device.type == mx.DeviceType.gpu else "cpu"
        self.dtype = str(dtype).removeprefix("mlx.core.")
        # A tied head embeds the choice by its own row, unless layers ask for rows that no head holds; only
        # one matrix can be indexed before the choice is known.
        tied = tied and rows.per_layer is None
        self.can_follow = tied and head.name != "split"
        self._model, self._rows, self._tied = model, rows, tied
        self._device = device
        self._embedding, self._layers = embedding, layers
        self._output = output
        output.set_head(head)
        self._cache: list[Any] = []
        self._log = CacheLog([])
        self._transform = logit_transform(model.args)
        self._knows_logits = True
        self._tile_bytes = tile_bytes
        self._scan: HeadScan | None = None

    @property
    def can_rewind(self) -> bool:
        return self._log.can_rewind

    def begin(self) -> None:
        self._cache = make_prompt_cache(self._model)
        self._log = CacheLog(self._cache)

    def prefill(self, ids: Ids) -> Step:
        # The last token goes alone, as in mlx-lm: batches of other sizes round differently.
        for _, inputs, index in self._pieces(ids[:-1]):
            self._run(inputs, index)
            self._settle()
        step = self._forward(self._rows.inputs(ids[-1:]), mx.array([[0]]))
        self._look_at(step.logits)
        self._log.rewind(0)
        return step

    def step(self, token: int) -> Step:
        if self._tied:
            rows, index = self.head.locate(int(self.head.vocabulary.local([token])[0]))
            inputs = Inputs(self._rows.as_embedding(rows))
        else:
            inputs, index = self._rows.inputs(np.array([token])), 0
        return self._forward(inputs, mx.array([[index]]))

    def follow(self, step: Step) -> Step:
        (rows,) = self.head.pieces
        return self._forward(Inputs(self._rows.as_embedding(rows)), step.local[None])

    def poll(self, step: Step) -> int:
        return int(step.token.item())

    def logits(self, step: Step) -> npt.NDArray[np.float32]:
        return np.array(step.logits[0].astype(mx.float32))

    def confidence(self, step: Step) -> float:
        return float(step.confidence.item())

    def verify(self, steps: Sequence[Step], drafts: Sequence[Draft], sampler: Sampler) -> list[int]:
        hidden = mx.concatenate([step.hidden for step in steps])
        return verify(lambda: self._tiles(hidden), drafts, sampler)

    def states(self, ids: Ids, start: int) -> Iterator[mx.array]:
        for at, inputs, index in self._pieces(ids):
            self._look_at(self._run(inputs, index))
            for first in range(max(start - at, 0), index.shape[1], POSITIONS):
                # A copy: a slice would keep the states of the whole piece.
                places = mx.arange(first, min(first + POSITIONS, index.shape[1]))
                states = mx.take(self._output.states, places, axis=0)
                mx.eval(states)
                yield states
            self._settle()

    def score(self, states: Sequence[mx.array], targets: Ids) -> Scored:
        return log_probabilities(self._tiles(mx.concatenate(list(states))), targets)

    def _tiles(self, hidden: mx.array) -> Iterable[LogitTile]:
        """Logits of every row of the full head for ``hidden [k, hidden]``."""
        if not self._knows_logits:
            raise ModelError(
                f"mlx-lm's {self._model.model_type} changes its logits in a way that vt does not know, "
                "so it can neither check nor score texts; generate with --approximate or --head full"
            )
        if self._scan is None:
            self._scan = HeadScan(self._rows, self._transform, self.device, hidden.dtype, self._tile_bytes)
        return self._scan.tiles(hidden)

    def rewind(self, count: int) -> None:
        if count:
            # What still holds the head's buffer (a step in flight, its embedding table) would make the next
            # write copy it whole: 9 to 22 ms for 29 MB instead of 0.1.
            self._clear()
            mx.synchronize()
        self._log.rewind(count)

    def end(self) -> None:
        self._cache = []
        self._log = CacheLog([])
        self._clear()
        self.head.truncate()
        mx.clear_cache()

    def peak_memory(self) -> int | None:
        return peak_memory(self._device)

    def _clear(self) -> None:
        """Let go of what the last call looked up and left."""
        for part in (self._embedding, self._layers, self._output):
            if part is not None:
                part.clear()

    def _look_at(self, logits: mx.array) -> None:
        """Whether tiles of the full head would be treated as the model treats its logits, and these are
        numbers.
        """
        if not mx.isfinite(logits).all().item():
            raise ModelError(
                f"the model gives logits that are no numbers in {self.dtype}; use --dtype bfloat16 or float32"
            )
        raw = self._output.logits
        treated = raw if self._transform is None else self._transform(raw)
        self._knows_logits = bool(mx.array_equal(treated, logits).item())

    def _pieces(self, ids: Ids) -> Iterator[tuple[int, Inputs, mx.array]]:
        """A text in pieces: where each begins, the rows that it needs, and which of them are its tokens,
        ``[1, n]``.
        """
        for start in range(0, len(ids), PREFILL_TOKENS):
            needed, index = np.unique(ids[start : start + PREFILL_TOKENS], return_inverse=True)
            yield start, self._rows.inputs(needed), mx.array(index.astype(np.int32))[None]

    def _settle(self) -> None:
        """Compute what a piece of a text leaves in the caches, and let go of the rest."""
        mx.eval([layer.state for layer in self._cache])
        mx.clear_cache()

    def _run(self, inputs: Inputs, index: mx.array) -> mx.array:
        """Logits ``[1, n]`` of the active rows for the last of some tokens."""
        self._embedding.set_table(inputs.embedding)
        if inputs.per_layer is not None:
            self._layers.set_rows(inputs.per_layer[index])
        return self._model(index, cache=self._cache)[0]

    def _forward(self, inputs: Inputs, index: mx.array) -> Step:
        self._log.record()
        logits = self._run(inputs, index)
        pieces = [piece.ids for piece in self.head.pieces]
        ids = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        token, local = greedy(logits, ids)
        sure = None
        if self.head.name != "full":
            sure = mx.softmax(logits.astype(mx.float32), axis=-1).max()
        # Evaluated here, not when it is asked for: by then the next step may be queued before it.
        mx.async_eval(token, local, *([] if sure is None else [sure]))
        return Step(self._output.hidden, logits, token, local, sure)


def load_decoder(
    directory: ModelDirectory,
    *,
    head: str,
    store: str,
    device: str | None,
    dtype: str | None,
    tile_bytes: int | None,
    quantize: str | None = None,
    tokens: int | None = None,
    adapter: Sequence[LowRank] = (),
) -> MlxDecoder:
    """See :meth:`vt_core.decode.backend.Backend.load_decoder`."""
    if quantize is not None:
        bits = quantize.removeprefix("int")
        raise BackendError(
            f"MLX reads weights that are quantized already: make them with vt-mlx convert --quantize {bits}, "
            "and leave --quantize out here"
        )
    manifest = directory.manifest
    strategy = head_class(head)
    target = pick_device(device)
    run_dtype = pick_dtype(dtype, manifest.dtype, target)
    reset_peak(target)
    body = load_body(directory, run_dtype)
    adapt(body.model, adapter)
    quantized = manifest.quantization or {}
    tables: dict[str, Table] = dict(open_tables(directory, store, packed=True))
    for name, factor in body.factors.items():
        if factor != 1 and name in quantized:
            raise ModelError(
                f"mlx-lm multiplies the {name} of a {manifest.model_type} model while it loads, which vt "
                "cannot do to a quantized one; convert the original weights"
            )
        if factor != 1:
            tables[name] = ScaledTable(tables[name], factor)
    if body.layers is None and "per_layer" in tables:
        raise ModelError(
            f"mlx-lm's {manifest.model_type} has no vocabulary table for its layers, and {directory.path} "
            "has one; vt cannot run this model with MLX"
        )
    rows = MlxRows(tables, quantized, manifest.tied, target, run_dtype)
    return MlxDecoder(
        body.model,
        body.embedding,
        body.layers,
        body.head,
        rows,
        strategy(rows, tokens or manifest.vocab_rows),
        tied=manifest.tied,
        device=target,
        dtype=run_dtype,
        tile_bytes=tile_bytes,
    )
