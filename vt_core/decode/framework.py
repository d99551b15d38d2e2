"""What a backend implements of a decoder: how its framework keeps caches, runs a body and computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from vt_core.decode.tiles import HeadScan
from vt_core.decode.types import AnySlot, Array

#: Tokens of a prompt that run at once. This bounds the memory of attention scores and of what layers compute.
PREFILL_TOKENS = 2048
#: The same on a CPU, which more tokens do not make faster. For 2000 tokens in bfloat16, Gemma 3 270M needs
#: 60 MB beyond what it held before instead of 120, and 0.8 times the time; SmolLM2 82 instead of 109.
CPU_PREFILL_TOKENS = 512


class Framework(ABC, Generic[Array, AnySlot]):
    """The hooks of :class:`vt_core.decode.decoder.Decoder`. Only the decoder calls them."""

    device: str  #: as the framework names it

    #: Whether the last token of a prompt runs alone, as the stock framework runs it. Products of other sizes
    #: round differently.
    last_token_alone = False

    #: Largest relative L2 distance, by float type, of hidden states that slots have together from those that
    #: they have alone.
    together_tolerance: Mapping[str, float] = {}

    #: Exceptions that say that the device's memory is full.
    out_of_memory: tuple[type[Exception], ...] = (MemoryError,)

    @property
    def prefill_tokens(self) -> int:
        """Tokens of a prompt that run at once."""
        return CPU_PREFILL_TOKENS if self.device == "cpu" else PREFILL_TOKENS

    @abstractmethod
    def peak_memory(self) -> int | None:
        """Peak bytes of the device's allocator, or None where the process's own memory is the measure."""

    def _context(self) -> AbstractContextManager[object]:
        """What every call of the framework runs in, such as a device or a mode. Entered several times a step,
        also while it is entered already.
        """
        return nullcontext()

    # The caches of a slot.

    @abstractmethod
    def _new_slot(self) -> AnySlot:
        """A slot with empty caches."""

    @abstractmethod
    def _copy_slot(self, slot: AnySlot) -> AnySlot:
        """See :meth:`Decoder.copy`."""

    @abstractmethod
    def _cache_bytes(self, slot: AnySlot) -> int:
        """See :meth:`Decoder.slot_bytes`."""

    @abstractmethod
    def _export_caches(self, slot: AnySlot) -> tuple[dict[str, np.ndarray], Any]:
        """See :meth:`Decoder.export`."""

    @abstractmethod
    def _restore_caches(self, slot: AnySlot, arrays: Mapping[str, np.ndarray], state: Any) -> None:
        """See :meth:`Decoder.restore`."""

    @abstractmethod
    def _empty_caches(self, slot: AnySlot) -> None:
        """Give a slot empty caches."""

    @abstractmethod
    def _rewind_caches(self, slot: AnySlot, count: int) -> int:
        """Take back ``count`` tokens, at least one; see :meth:`Decoder.rewind`.

        Returns:
            How many of the tokens before them the caches lost with them, which must be read again.
        """

    @abstractmethod
    def _settle_caches(self, slot: AnySlot) -> None:
        """Let tokens from now on be taken back, and forget what it takes for those before."""

    def _prepare_rewind(self, slot: AnySlot) -> None:
        """The tokens that are read next may be taken back."""

    @abstractmethod
    def _cut_caches(self, slot: AnySlot, count: int) -> bool:
        """Take back ``count`` tokens, maybe none, whenever they were read. Returns False, and does nothing,
        where another prompt cannot go on from these caches.
        """

    def _caches_are_stale(self, slot: AnySlot, length: int) -> bool:
        """Whether a text of ``length`` tokens needs caches that are computed anew."""
        return False

    def _piece_tokens(self, slot: AnySlot, length: int) -> int:
        """Tokens that run at once when a slot is to hold ``length`` tokens."""
        return self.prefill_tokens

    def _read_tokens(self, slot: AnySlot, count: int) -> int:
        """How many of ``count`` tokens after a prompt run at once; a slot's text holds them already."""
        return count

    def _divides(self, slots: Sequence[AnySlot]) -> bool:
        """Whether :meth:`_run_together` can divide the caches of these slots. What else a body does with the
        tokens of several slots is tried out (:mod:`vt_core.decode.together`).
        """
        return False

    # Running the body.

    @abstractmethod
    def _run(self, slot: AnySlot, inputs: Any, index: Array, positions: int = 1) -> Array:
        """Run some tokens, ``index [1, n]`` into the rows of ``inputs``.

        Returns:
            Logits ``[positions, size]`` of the last ``positions`` tokens.
        """

    def _run_steps(self, slot: AnySlot, inputs: Any, index: Array, positions: int) -> Array:
        """:meth:`_run` for tokens that may be taken back."""
        return self._run(slot, inputs, index, positions)

    def _run_together(self, slots: list[AnySlot], inputs: Any, index: Array, counts: list[int]) -> Array:
        """Run ``counts[i]`` tokens of each slot at once, where :meth:`_divides`. They can be undone.

        Args:
            slots: different ones.
            inputs: rows of all tokens.
            index: ``[1, n]`` into the rows of ``inputs``, slot after slot.
            counts: tokens of each slot; their sum is ``n``.

        Returns:
            Logits ``[n, size]``.
        """
        raise NotImplementedError

    def _finish_piece(self, slot: AnySlot) -> None:
        """A piece of a text was read and another follows."""

    def _release(self) -> None:
        """Drop what the last call looked up and left on the device."""

    @abstractmethod
    def _every_state(self) -> Array:
        """Hidden states ``[n, hidden]`` of all positions of the last :meth:`_run`."""

    @abstractmethod
    def _hidden(self) -> Array:
        """Hidden states ``[positions, hidden]`` of the last :meth:`_run`, see there."""

    @abstractmethod
    def _head_logits(self) -> Array:
        """Logits of the last :meth:`_run` as they left the head, before what the model does to them."""

    @abstractmethod
    def _scan_head(self, hidden: Array) -> HeadScan:
        """The full head as it is read from the store, for hidden states of the float type of ``hidden``."""

    # Arrays.

    @abstractmethod
    def _greedy(self, logits: Array) -> tuple[Array, Array]:
        """Full and local ids ``[k]`` of the largest of ``logits [k, size]``; of equals the lowest full id.

        The full id is :data:`NOT_A_NUMBER` where a logit is NaN.
        """

    @abstractmethod
    def _top_probability(self, logits: Array) -> Array:
        """Largest softmax probability of each of ``logits [k, size]``, in float32."""

    def _start(self, arrays: list[Array]) -> None:
        """Begin to compute lazy arrays without waiting for them."""

    @abstractmethod
    def _index(self, index: npt.NDArray[np.int64]) -> Array:
        """Indices ``[n]`` on the device, as ``[1, n]``."""

    @abstractmethod
    def _to_host(self, array: Array) -> npt.NDArray[np.float32]:
        """An array in host memory, as float32."""

    @abstractmethod
    def _concatenate(self, arrays: list[Array]) -> Array:
        """Arrays one after the other, along their first axis."""

    @abstractmethod
    def _all_finite(self, array: Array) -> bool: ...

    @abstractmethod
    def _equal(self, first: Array, second: Array) -> bool: ...
