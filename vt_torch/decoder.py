"""A model body with its cache and head: :class:`vt_core.decode.decoder.Decoder` for PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, LinearAttentionCacheLayerMixin

from vt_core.decode.decoder import Decoder
from vt_core.decode.types import Slot, Steps
from vt_core.errors import ModelError
from vt_core.types import Ids
from vt_core.vocab.heads import Head
from vt_torch.body import layer_table
from vt_torch.caches import (
    Snapshot,
    cache_bytes,
    can_take_back,
    export_cache,
    is_recurrent,
    record_past,
    restore_cache,
    stop_recording,
    take_back,
)
from vt_torch.compiled import (
    FixedLayer,
    check_model,
    compile_steps,
    empty_plain_cache,
    fit,
    fixed_cache,
    plain_cache,
    warm_up,
)
from vt_torch.continuing import PROBE_TOKENS, continues, limits_steps
from vt_torch.device import peak_memory
from vt_torch.growing import GrowingLayer, make_room, new_cache
from vt_torch.integer_scan import IntegerScan
from vt_torch.products import kernels_of, without_onednn
from vt_torch.rotary import Rotary, RotaryLog, cache_threshold, scaling_start
from vt_torch.rows import Inputs, Rows, TorchRows, greedy
from vt_torch.together import Together
from vt_torch.verification import HeadScan, logit_transform

#: Cache layers that can be cut anywhere.
_CUTTABLE = (DynamicLayer, GrowingLayer, DummyLayer, FixedLayer)


@dataclass(slots=True, eq=False)
class TorchSlot(Slot[torch.Tensor]):
    """A slot with transformers' caches."""

    cache: DynamicCache = field(kw_only=True)
    #: Tokens that were read at once: a sliding window holds only the last of them.
    prefilled: int = 0
    #: On which side of the threshold the cache was computed; None: invalid.
    beyond_threshold: bool | None = False
    rotary: RotaryLog = field(kw_only=True)
    snapshot: Snapshot = field(default_factory=Snapshot)  #: recurrent states that a rewind goes back to
    #: Tokens that were read since the snapshot; None: there is none since the slot was settled.
    tentative: int | None = None


class TorchDecoder(Decoder[torch.Tensor, TorchSlot]):
    """See :class:`vt_core.decode.decoder.Decoder`."""

    # SmolLM2 135M, Gemma 3 270M and Qwen2.5 0.5B differ by up to 3e-6 in float32 and 0.019 in bfloat16; with
    # one slot's positions off by one, by 0.07 or more.
    together_tolerance = {"float32": 1e-4, "bfloat16": 0.04, "float16": 0.04}  # noqa: RUF012
    out_of_memory = (MemoryError, torch.OutOfMemoryError)

    def __init__(
        self,
        model: PreTrainedModel,
        rows: TorchRows,
        head: Head[Rows, torch.Tensor],
        *,
        tied: bool,
        device: torch.device,
        dtype: torch.dtype,
        tile_bytes: int | None,
        compiled: bool = False,
    ) -> None:
        # A decoded token of a tied model is embedded by its head row, except where that row is quantized
        # (embeddings stay floats) or where the layers need rows that no head holds.
        tied = tied and not rows.quantized and rows.per_layer is None
        self._threshold = cache_threshold(model)
        self._scaled_beyond = scaling_start(model)
        # Following indexes one matrix before the choice is known. A CPU has nothing to overlap.
        can_follow = tied and head.name != "split" and device.type != "cpu" and self._threshold is None
        super().__init__(
            head,
            rows,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            tied=tied,
            can_follow=can_follow,
            transform=logit_transform(model.config),
            framework_name=type(model).__name__.removeprefix("Tableless"),
        )
        self._model, self._device = model, device
        self._embedding, self._layers = model.get_input_embeddings(), layer_table(model)
        self._output = model.get_output_embeddings()
        self._output.head = head
        self._rotary = Rotary(model)
        self._together = Together(model)
        self._cache_argument = _cache_argument(model)
        self._tile_bytes = tile_bytes
        self.compiled = compiled
        if compiled:
            check_model(model, self._not_compiled())
            kernels = kernels_of(rows.head_table.spec, dtype) if device.type == "cpu" else {}
            compile_steps(model, device, bool(kernels) and kernels[1].multiply is without_onednn)
            self._warm_up()

    def prefill(self, slot: TorchSlot, ids: Ids) -> Steps[torch.Tensor]:
        stop_recording(slot.cache)
        make_room(slot.cache, len(slot.text) + len(ids))
        steps = super().prefill(slot, ids)
        slot.prefilled, slot.beyond_threshold = len(slot.text), self._is_beyond_threshold(len(slot.text))
        return steps

    def _cache_bytes(self, slot: TorchSlot) -> int:
        return cache_bytes(slot.cache) + slot.snapshot.nbytes

    def _export_caches(self, slot: TorchSlot) -> tuple[dict[str, np.ndarray], Any]:
        arrays, layers = export_cache(plain_cache(slot.cache) if self.compiled else slot.cache)
        return arrays, {
            "layers": layers,
            "prefilled": slot.prefilled,
            "beyond_threshold": slot.beyond_threshold,
        }

    def _restore_caches(self, slot: TorchSlot, arrays: Mapping[str, np.ndarray], state: Any) -> None:
        if self.compiled:
            slot.cache = empty_plain_cache(len(slot.cache.layers))
        restore_cache(slot.cache, arrays, state["layers"], self._device)
        if self.compiled:
            slot.cache = fixed_cache(slot.cache)
        slot.prefilled, slot.beyond_threshold = state["prefilled"], state["beyond_threshold"]
        slot.can_rewind = can_take_back(slot.cache)

    def peak_memory(self) -> int | None:
        return peak_memory(self._device)

    def _context(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    # The framework's caches.

    def _new_slot(self) -> TorchSlot:
        return TorchSlot(cache=self._new_cache(), rotary=self._rotary.log())

    def _new_cache(self) -> DynamicCache:
        cache = new_cache(self._model.config)
        return fixed_cache(cache) if self.compiled else cache

    def _warm_up(self) -> None:
        """Compile the steps now, for the first size of a cache and for larger ones, and not in a request."""
        with self._context():
            slot, index = self._new_slot(), self._index(np.zeros(1, dtype=np.int64))
            self._look_up_in(self._rows.inputs(np.zeros(1, dtype=np.int64)), index)
            warm_up(self._model, slot.cache, index)
            self._embedding.table = None

    def _not_compiled(self) -> str | None:
        """Why the steps of this model cannot be compiled, as the end of a sentence; None if they can."""
        if self._rotary.is_dynamic or self._scaled_beyond is not None:
            return "its keys are rotated by the length of the text"
        if self._layers is not None:
            return "its layers have a vocabulary table"
        if self._has_states or self._limits_steps or self._cache_argument != "past_key_values":
            return "its layers keep states that are not keys and values of every token"
        return None

    def _copy_slot(self, slot: TorchSlot) -> TorchSlot:
        return deepcopy(slot)

    def _empty_caches(self, slot: TorchSlot) -> None:
        slot.cache = self._new_cache()
        slot.prefilled, slot.beyond_threshold = 0, False
        slot.can_rewind, slot.rereads = True, False
        slot.rotary = self._rotary.log()
        slot.snapshot, slot.tentative = Snapshot(), None

    def _rewind_caches(self, slot: TorchSlot, count: int) -> int:
        lost = 0
        if slot.rereads:
            assert slot.tentative is not None, "no snapshot was taken"
            lost = slot.tentative - count
            slot.snapshot.restore(slot.cache)
            slot.tentative = 0
        slot.rotary.rewind(count + lost)
        if self._threshold is not None and len(slot.text) < slot.prefilled:
            slot.beyond_threshold = None
        else:
            take_back(slot.cache, count + lost)
        return lost

    def _cut_caches(self, slot: TorchSlot, count: int) -> bool:
        if self._scaled_beyond is not None or self._limits_steps:
            return False  # a longer prompt may rotate all keys anew, or gives other states than its tokens
        if count and any(type(layer) not in _CUTTABLE for layer in slot.cache.layers):
            return False
        if count:
            slot.cache.crop(-count)
        return True

    def _settle_caches(self, slot: TorchSlot) -> None:
        slot.rotary.settle()
        slot.tentative = None
        # Known only after the first tokens.
        slot.can_rewind = can_take_back(slot.cache)
        slot.rereads = any(map(is_recurrent, slot.cache.layers))
        if slot.can_rewind:
            # Not before the prompt was read: recording keeps what slides out of a window.
            record_past(slot.cache)

    def _prepare_rewind(self, slot: TorchSlot) -> None:
        if slot.rereads and slot.can_rewind and slot.tentative is None:
            slot.snapshot.take(slot.cache)
            slot.tentative = 0

    def _caches_are_stale(self, slot: TorchSlot, length: int) -> bool:
        return bool(slot.text) and self._is_beyond_threshold(length) != slot.beyond_threshold

    def _release(self) -> None:
        self._embedding.table = None
        if self._layers is not None:
            self._layers.rows = None
        self._output.states = self._output.hidden = self._output.logits = None

    def _is_beyond_threshold(self, length: int) -> bool:
        return self._threshold is not None and length > self._threshold

    def _piece_tokens(self, slot: TorchSlot, length: int) -> int:
        if self._has_states and (slot.text or length > self.prefill_tokens) and not self._continues:
            return 1 if slot.text else length
        # Scaling that depends on the length rotates all keys of a prompt alike only if they are read
        # together.
        scaled = self._scaled_beyond is not None and length > self._scaled_beyond
        return length if scaled else self.prefill_tokens

    # Running the body.

    def _run(
        self, slot: TorchSlot, inputs: Inputs, index: torch.Tensor, positions: int = 1, recorded: int = 0
    ) -> torch.Tensor:
        self._output.positions = positions
        self._look_up_in(inputs, index)
        if self.compiled:
            # A text that is only scored is not kept in the slot.
            fit(slot.cache, len(slot.text) or int(slot.cache.get_seq_length()) + index.shape[1])
        cache = {self._cache_argument: slot.cache}
        with self._rotary.reading(slot.rotary, recorded):
            return self._model(input_ids=index, use_cache=True, **cache).logits[0]

    def _look_up_in(self, inputs: Inputs, index: torch.Tensor) -> None:
        """Let the model look up the tokens of its next call, ``index``, in the rows of ``inputs``."""
        self._embedding.table = inputs.embedding
        if inputs.per_layer is not None:
            self._layers.rows = inputs.per_layer[index]

    def _run_steps(
        self, slot: TorchSlot, inputs: Inputs, index: torch.Tensor, positions: int
    ) -> torch.Tensor:
        if slot.tentative is not None:
            slot.tentative += index.shape[1]
        return self._run(slot, inputs, index, positions, recorded=index.shape[1])

    def _divides(self, slots: Sequence[TorchSlot]) -> bool:
        return self._together.divides([slot.cache for slot in slots])

    def _run_together(
        self, slots: list[TorchSlot], inputs: Inputs, index: torch.Tensor, counts: list[int]
    ) -> torch.Tensor:
        self._output.positions = index.shape[1]
        self._look_up_in(inputs, index)
        lengths = [len(slot.text) - count for slot, count in zip(slots, counts, strict=True)]
        return self._together.run([slot.cache for slot in slots], lengths, index, counts)

    def _read_tokens(self, slot: TorchSlot, count: int) -> int:
        if count > 1 and self._has_states and not self._continues:
            return 1
        # Each token is rotated by the length of the text at that token. Longrope changes at one length only.
        start, length = self._scaled_beyond, len(slot.text)
        if start is None or length <= start:
            return count
        return 1 if self._rotary.is_dynamic or length - count < start else count

    @cached_property
    def _has_states(self) -> bool:
        """Whether the model has recurrent or convolving layers."""
        layers = DynamicCache(config=self._model.config).layers
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)

    @cached_property
    def _limits_steps(self) -> bool:
        return limits_steps(self._model)

    @cached_property
    def _continues(self) -> bool:
        """Whether the model reads several tokens after others as it reads them one by one. Reads a few tokens
        to find out.
        """
        rows = self._rows.embedding.spec.rows // 2
        ids = np.linspace(rows // 4, rows, PROBE_TOKENS).astype(np.int64)
        with self._context():
            return not self._limits_steps and continues(lambda ends: self._read_pieces(ids, ends), self.dtype)

    def _read_pieces(self, ids: Ids, ends: tuple[int, ...]) -> torch.Tensor:
        """Hidden states of a short text that is read in pieces."""
        slot, states = self._new_slot(), []
        for start, end in pairwise((0, *ends)):
            self._run(slot, *self._inputs(ids[start:end]))
            states.append(self._output.states.float())
        return torch.cat(states)

    def _every_state(self) -> torch.Tensor:
        return self._output.states

    def _hidden(self) -> torch.Tensor:
        return self._output.hidden

    def _head_logits(self) -> torch.Tensor:
        return self._output.logits

    def _scan_head(self, hidden: torch.Tensor) -> HeadScan:
        kind = IntegerScan if self._rows.quantized else HeadScan
        return kind(
            self._rows,
            self.head.vocabulary.rows,
            self._transform,
            self._device,
            hidden.dtype,
            self._tile_bytes,
        )

    # Arrays.

    def _greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return greedy(logits, torch.cat([piece.ids for piece in self.head.pieces]))

    def _top_probability(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().softmax(dim=-1).amax(dim=-1)

    def _index(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(index)[None].to(self._device)

    def _to_host(self, array: torch.Tensor) -> npt.NDArray[np.float32]:
        return array.float().cpu().numpy()

    def _concatenate(self, arrays: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(arrays)

    def _all_finite(self, array: torch.Tensor) -> bool:
        return bool(torch.isfinite(array).all())

    def _equal(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        return torch.equal(first, second)


def _cache_argument(model: PreTrainedModel) -> str:
    """Name of the argument in which a model takes its cache. A wrong name would be ignored silently."""
    known = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise ModelError(
        f"{type(model).__name__.removeprefix('Tableless')} takes its cache in a way that vt does not know"
    )
