"""A model body with its cache and head: :class:`vt_core.decode.backend.Decoder` for PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel

from vt_core.decode.sampling import Sampler
from vt_core.decode.scoring import POSITIONS, Scored, log_probabilities
from vt_core.decode.verification import Draft, verify
from vt_core.errors import ModelError
from vt_core.files.adapters import LowRank
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tables import open_tables
from vt_core.vocab.active import Ids
from vt_core.vocab.heads import Head, head_class
from vt_torch.adapters import adapt
from vt_torch.body import layer_table, load_body
from vt_torch.device import peak_memory, pick_device, pick_dtype, reset_peak
from vt_torch.prequantized import find_layout
from vt_torch.quantized import pick_bits
from vt_torch.rows import Inputs, TorchRows, greedy
from vt_torch.verification import HeadScan, TorchTile, logit_transform

#: Models whose cache transformers drops where a text grows beyond the original context.
_READ_ANEW = ("phi3", "phimoe", "phi4_multimodal")
PREFILL_TOKENS = 2048  #: tokens of a prompt that run at once; bounds the memory of attention scores


@dataclass(slots=True)
class Step:
    """One decoded position, on the device."""

    hidden: torch.Tensor  #: ``[1, hidden]``, the input of the head
    logits: torch.Tensor  #: ``[1, n]`` of the active rows, in the run's dtype
    token: torch.Tensor  #: greedy choice, full id ``[1]``
    local: torch.Tensor  #: the same as local id ``[1]``
    confidence: torch.Tensor | None  #: its probability among the active rows; None on the full head


class TorchDecoder:
    """See :class:`vt_core.decode.backend.Decoder`."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: TorchRows,
        head: Head,
        *,
        tied: bool,
        device: torch.device,
        dtype: torch.dtype,
        tile_bytes: int | None,
    ) -> None:
        self.head = head
        self.device = str(device)
        self.dtype = str(dtype).removeprefix("torch.")
        # A tied head embeds the choice by its own row, unless that is quantized, for embeddings stay as the
        # model has them, or layers ask for rows that no head holds. Only one matrix can be indexed before the
        # choice is known. On a CPU there is nothing to wait for.
        tied = tied and not rows.quantized and rows.per_layer is None
        self._short_range = _short_range(model)
        self._text: list[int] = []  # what the cache holds, for when it has to be made anew
        self._read = 0  # how much of it was read at once: windows let go of what they need not hold of that
        self._long: bool | None = False
        self.can_follow = tied and head.name != "split" and device.type != "cpu" and self._short_range is None
        self._model, self._rows, self._tied = model, rows, tied
        self._device = device
        self._embedding = model.get_input_embeddings()
        self._layers = layer_table(model)
        self._output = model.get_output_embeddings()
        self._output.head = head
        self._cache: DynamicCache | None = None
        self._cache_argument = _cache_argument(model)
        self._transform = logit_transform(model.config)
        self._knows_logits = True
        self._tile_bytes = tile_bytes
        self._scan: HeadScan | None = None

    @property
    def can_rewind(self) -> bool:
        return self._cache is None or self._cache.is_croppable

    def begin(self) -> None:
        self._cache = DynamicCache(config=self._model.config)

    def prefill(self, ids: Ids) -> Step:
        self._text, self._read, self._long = ids.tolist(), len(ids), self._is_long(len(ids))
        for _, inputs, index in self._pieces(ids):
            step = self._forward(inputs, index)
        self._look_at(step.logits)
        # From here on tokens can be taken back. Not before: recording keeps what slides out of a window.
        if self._cache.is_croppable:
            self._cache.activate_past_recording()
        return step

    def step(self, token: int) -> Step:
        self._text.append(token)
        # Forth over the border, or back behind it after tokens were taken back.
        if self._is_long(len(self._text)) != self._long:
            self.begin()
            return self.prefill(np.array(self._text))
        if self._tied:
            rows, index = self.head.locate(int(self.head.vocabulary.local([token])[0]))
            inputs = Inputs(rows.weight)
        else:
            inputs, index = self._rows.inputs(np.array([token])), 0
        return self._forward(inputs, torch.tensor([[index]], device=self._device))

    def follow(self, step: Step) -> Step:
        (rows,) = self.head.pieces
        return self._forward(Inputs(rows.weight), step.local[None])

    def poll(self, step: Step) -> int:
        return int(step.token)

    def logits(self, step: Step) -> npt.NDArray[np.float32]:
        return step.logits[0].float().cpu().numpy()

    def confidence(self, step: Step) -> float:
        return float(step.confidence)

    @torch.inference_mode()
    def verify(self, steps: Sequence[Step], drafts: Sequence[Draft], sampler: Sampler) -> list[int]:
        hidden = torch.cat([step.hidden for step in steps])
        return verify(lambda: self._tiles(hidden), drafts, sampler)

    def states(self, ids: Ids, start: int) -> Iterator[torch.Tensor]:
        for at, inputs, index in self._pieces(ids):
            self._look_at(self._run(inputs, index))
            for first in range(max(start - at, 0), index.shape[1], POSITIONS):
                # A copy: a slice would keep the states of the whole piece.
                yield self._output.states[first : first + POSITIONS].clone()

    @torch.inference_mode()
    def score(self, states: Sequence[torch.Tensor], targets: Ids) -> Scored:
        return log_probabilities(self._tiles(torch.cat(list(states))), targets)

    def _tiles(self, hidden: torch.Tensor) -> Iterable[TorchTile]:
        """Logits of every row of the full head for ``hidden [k, hidden]``."""
        if not self._knows_logits:
            name = type(self._model).__name__.removeprefix("Tableless")
            raise ModelError(
                f"{name} changes its logits in a way that vt does not know, so it can neither check nor "
                "score texts; generate with --approximate or --head full"
            )
        if self._scan is None:
            rows = self._rows
            self._scan = HeadScan(
                rows.head_table,
                rows.whole_bias(),
                self._transform,
                self._device,
                hidden.dtype,
                self._tile_bytes,
                rows.quantized,
            )
        return self._scan.tiles(hidden)

    def rewind(self, count: int) -> None:
        assert self._cache is not None
        if self._cache.is_croppable:
            del self._text[len(self._text) - count :]
            if self._short_range is not None and len(self._text) < self._read:
                self._long = None  # the next step reads the text anew
            else:
                self._cache.crop(-count)

    def end(self) -> None:
        self._cache = self._embedding.table = None
        if self._layers is not None:
            self._layers.rows = None
        self._output.states = self._output.hidden = self._output.logits = None
        self.head.truncate()

    def peak_memory(self) -> int | None:
        return peak_memory(self._device)

    def _look_at(self, logits: torch.Tensor) -> None:
        """Whether tiles of the full head would be treated as the model treats its logits, and these are
        numbers.
        """
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"the model gives logits that are no numbers in {self.dtype}; use --dtype bfloat16 or float32"
            )
        assert self._output.logits is not None
        self._knows_logits = torch.equal(self._transform(self._output.logits), logits)

    def _pieces(self, ids: Ids) -> Iterator[tuple[int, Inputs, torch.Tensor]]:
        """A text in pieces: where each begins, the rows that it needs, and which of them are its tokens,
        ``[1, n]``.
        """
        # Mamba goes on from a state with single tokens only.
        whole = self._cache_argument == "cache_params" or self._is_long(len(ids))
        piece = len(ids) if whole else PREFILL_TOKENS
        for start in range(0, len(ids), piece):
            needed, index = np.unique(ids[start : start + piece], return_inverse=True)
            yield start, self._rows.inputs(needed), torch.from_numpy(index)[None].to(self._device)

    def _is_long(self, tokens: int) -> bool:
        return self._short_range is not None and tokens > self._short_range

    @torch.inference_mode()
    def _run(self, inputs: Inputs, index: torch.Tensor) -> torch.Tensor:
        """Logits ``[1, n]`` of the active rows for the last of some tokens."""
        self._embedding.table = inputs.embedding
        if inputs.per_layer is not None:
            self._layers.rows = inputs.per_layer[index]
        cache = {self._cache_argument: self._cache}
        return self._model(input_ids=index, use_cache=True, **cache).logits[0]

    @torch.inference_mode()
    def _forward(self, inputs: Inputs, index: torch.Tensor) -> Step:
        logits = self._run(inputs, index)
        ids = torch.cat([piece.ids for piece in self.head.pieces])
        token, local = greedy(logits, ids)
        # Made here, not when it is asked for: by then the next step may be queued before it.
        sure = None if self.head.name == "full" else logits.float().softmax(dim=-1).amax()
        return Step(self._output.hidden, logits, token, local, sure)


def _short_range(model: PreTrainedModel) -> int | None:
    """Up to how many tokens a model turns all its keys in one way; those of a longer text it turns in another
    (Phi 3's long contexts), so that a cache is of no use beyond, nor one from beyond below. Else None, also
    of other models with such a rotation, whose caches transformers keeps.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    if model.config.model_type not in _READ_ANEW or rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings")


def _cache_argument(model: PreTrainedModel) -> str:
    """Under which name a model takes its cache. One that it does not know it would silently do without."""
    known = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise ModelError(
        f"{type(model).__name__.removeprefix('Tableless')} takes its cache in a way that vt does not know"
    )


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
) -> TorchDecoder:
    """See :meth:`vt_core.decode.backend.Backend.load_decoder`."""
    manifest = directory.manifest
    strategy = head_class(head)
    target = pick_device(device)
    layout = find_layout(directory)
    mode = "int4" if layout is not None and layout.stays(target) else quantize
    run_dtype = pick_dtype(dtype, manifest.dtype, target, mode)
    bits = None if quantize is None else pick_bits(quantize, target, run_dtype)
    reset_peak(target)
    rows = TorchRows(
        open_tables(directory, store), manifest.tied, target, run_dtype, quantized=bits is not None
    )
    model = load_body(directory, target, run_dtype, bits)
    if layer_table(model) is None and rows.per_layer is not None:
        raise ModelError(
            f"transformers' {manifest.model_type} has no vocabulary table for its layers, and "
            f"{directory.path} has one; vt cannot run this model with PyTorch"
        )
    adapt(model, adapter, target)
    return TorchDecoder(
        model,
        rows,
        strategy(rows, tokens or manifest.vocab_rows),
        tied=manifest.tied,
        device=target,
        dtype=run_dtype,
        tile_bytes=tile_bytes,
    )
