"""A model body with its caches and a head: what every backend's decoder does alike.

A backend subclasses :class:`Decoder` and fills in the hooks: how arrays are made and run, and how its
framework's caches are made, cut and dropped. The loop (:mod:`vt_core.decode.request`) calls the public
methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from vt_core.decode.probabilities import log_probabilities
from vt_core.decode.sampling import Sampler
from vt_core.decode.types import NOT_A_NUMBER, AnySlot, Array, Scored, Step
from vt_core.decode.verification import Draft, HeadScan, Verified, verify
from vt_core.errors import ModelError
from vt_core.vocab.active import Ids
from vt_core.vocab.heads import Head

#: Tokens of a prompt that run at once. Bounds the memory of attention scores.
PREFILL_TOKENS = 2048

#: Hidden states in one piece of :meth:`Decoder.states`. It bounds the logits of a tile; with so many
#: positions the product takes far longer than reading the head.
POSITIONS = 256


class Decoder(ABC, Generic[Array, AnySlot]):
    """A model body and a head, for texts in slots: :meth:`open`, :meth:`prefill`, steps, :meth:`close`.

    Laws, tested on every backend: ``prefill(a + b)`` leaves the state of ``prefill(a)`` followed by ``step``
    over ``b``; reduced logits are the gathered columns of the full ones; what happens in one slot never
    changes another.
    """

    #: Whether the last token of a prompt runs alone, as the stock framework runs it. Products of other sizes
    #: round differently.
    last_token_alone = False

    head: Head[Any, Array]
    device: str  #: as the framework names it
    dtype: str  #: float type of the run
    can_follow: bool  #: whether the next step can be queued before the host knows this one's token

    def __init__(
        self,
        head: Head[Any, Array],
        rows: Any,
        *,
        device: str,
        dtype: str,
        tied: bool,
        can_follow: bool,
        transform: Callable[[Array], Array] | None,
        framework_name: str,
    ) -> None:
        """
        Args:
            head: the reduced or full head, over ``rows``.
            rows: the backend's row operations; besides those of the head it has ``inputs(ids)`` (embedding
                rows of full ids) and ``tied_inputs(rows)`` (head rows as embedding rows).
            device: name of the device.
            dtype: name of the run's float type.
            tied: whether a decoded token is embedded by its head row.
            can_follow: see the attribute.
            transform: what the model does to its logits after the head; None for nothing.
            framework_name: what messages call the framework's class of this model.
        """
        self.head, self._rows = head, rows
        self.device, self.dtype = device, dtype
        self.can_follow = can_follow
        self._tied = tied
        self._transform = transform
        self._framework_name = framework_name
        self._scan: HeadScan | None = None
        self._transform_is_known = True

    # The protocol.

    def open(self) -> AnySlot:
        """A slot with empty caches."""
        with self._context():
            return self._new_slot()

    def prefill(self, slot: AnySlot, ids: Ids) -> Step[Array]:
        """Read full ids (at least one) after what a slot holds; returns the last position.

        Raises:
            ModelError: the logits are not finite numbers.
        """
        with self._context():
            tokens = ids.tolist()
            if self._caches_are_stale(slot, len(slot.text) + len(tokens)):
                tokens = slot.ids + tokens
                self._empty(slot)
            whole = np.array(tokens, dtype=np.int64)
            size = self._piece_tokens(slot, len(slot.text) + len(tokens))
            first = len(tokens) - 1 if self.last_token_alone else 0
            pieces = [*_pieces(0, first, size), *_pieces(first, len(tokens), size)]
            slot.text = [*slot.text, *tokens]
            for start, end in pieces[:-1]:
                self._run(slot, *self._inputs(whole[start:end]))
                self._finish_piece(slot)
            start, end = pieces[-1]
            step = self._forward(slot, *self._inputs(whole[start:end]))
            self._check_logits(step.logits)
            self._allow_rewind(slot)
        return step

    def step(self, slot: AnySlot, token: int) -> Step[Array]:
        """Read one more token, a full id that is active."""
        with self._context():
            if self._caches_are_stale(slot, len(slot.text) + 1):
                return self.prefill(slot, np.array([token]))
            slot.text.append(token)
            if self._tied:
                rows, place = self.head.locate(int(self.head.vocabulary.local([token])[0]))
                return self._forward(slot, self._rows.tied_inputs(rows), self._index(np.array([place])))
            return self._forward(slot, *self._inputs(np.array([token])))

    def follow(self, slot: AnySlot, step: Step[Array]) -> Step[Array]:
        """Read the greedy choice of ``step`` without waiting for it; only where :attr:`can_follow`."""
        with self._context():
            slot.text.append(step.token)
            (rows,) = self.head.pieces
            return self._forward(slot, self._rows.tied_inputs(rows), step.local[None])

    def rewind(self, slot: AnySlot, count: int) -> None:
        """Take back the last ``count`` tokens of a slot, among those read since the last call.

        ``rewind(slot, 0)`` keeps all. Either way, tokens read from now on can be taken back. Only where
        :attr:`Slot.can_rewind`, unless ``count`` is 0.
        """
        if count:
            del slot.text[-count:]
        with self._context():
            self._rewind_caches(slot, count)

    def cut(self, slot: AnySlot, length: int) -> int:
        """Prepare a slot for another prompt: keep at most its first ``length`` tokens.

        Returns:
            The number of tokens that are kept: ``length``, or 0 where these caches cannot be cut.
        """
        count = len(slot.text) - length
        with self._context():
            if not self._cut_caches(slot, count):
                self._empty(slot)
            elif count:
                del slot.text[length:]
        return len(slot.text)

    def copy(self, slot: AnySlot) -> AnySlot:
        """A slot that holds the same. Neither changes the other."""
        with self._context():
            slot.text = list(slot.ids)
            return self._copy_slot(slot)

    def export(self, slot: AnySlot) -> tuple[dict[str, np.ndarray], Any]:
        """The caches of a slot: arrays in storage dtypes by name, and the rest as JSON can hold it."""
        with self._context():
            return self._export_caches(slot)

    def restore(self, slot: AnySlot, arrays: Mapping[str, np.ndarray], state: Any) -> None:
        """Fill the empty caches of a slot with what :meth:`export` gave. What does not fit raises one of
        Python's own errors.
        """
        with self._context():
            self._restore_caches(slot, arrays, state)

    def close(self, slot: AnySlot) -> None:
        """Drop the caches of a slot, and what the last call left on the device. Safe at any moment."""
        with self._context():
            self._empty(slot)
            self._release()

    def poll(self, step: Step[Array]) -> int:
        """The greedy choice of a step, a full id; waits for the device. Ties go to the lowest full id.

        Raises:
            ModelError: a logit is not a number.
        """
        with self._context():
            token = int(step.token.item())
        if token >= NOT_A_NUMBER:
            raise self._not_finite()
        return token

    def logits(self, step: Step[Array]) -> npt.NDArray[np.float32]:
        """Logits of the active rows in local order, float32 ``[size]``; waits for the device.

        Raises:
            ModelError: a logit is not a number.
        """
        with self._context():
            logits = self._to_host(step.logits)[0]
        if np.isnan(logits).any():
            raise self._not_finite()
        return logits

    def confidence(self, step: Step[Array]) -> float:
        """Probability of the greedy choice among the active rows; waits for the device."""
        assert step.confidence is not None, "the slot was told that nobody asks"
        with self._context():
            return float(step.confidence.item())

    def verify(self, steps: Sequence[Step[Array]], drafts: Sequence[Draft], sampler: Sampler) -> Verified:
        """The full head's choices for decoded positions; see :func:`vt_core.decode.verification.verify`."""
        with self._context():
            hidden = self._concatenate([step.hidden for step in steps])
            return verify(self._full_head(hidden), hidden, drafts, sampler)

    def states(self, ids: Ids, start: int) -> Generator[Array, None, None]:
        """Read a text of full ids in a slot of its own, and yield the hidden states of its positions from
        ``start`` on, in order, ``[k, hidden]`` with ``k`` at most :data:`POSITIONS`. Each piece stays valid.
        """
        slot = self.open()
        try:
            for first, end in _pieces(0, len(ids), self._piece_tokens(slot, len(ids))):
                with self._context():
                    self._check_logits(self._run(slot, *self._inputs(ids[first:end])))
                for at in range(max(start - first, 0), end - first, POSITIONS):
                    with self._context():
                        states = self._copy_states(at, min(at + POSITIONS, end - first))
                    yield states
                with self._context():
                    self._finish_piece(slot)
        finally:
            self.close(slot)

    def score(self, states: Sequence[Array], targets: Ids) -> Scored:
        """Log-probabilities of the full ids ``targets [k]`` at the ``k`` positions of some states, with one
        read of the full head.
        """
        with self._context():
            hidden = self._concatenate(list(states))
            return log_probabilities(self._full_head(hidden).tiles(hidden), targets)

    def truncate_head(self) -> None:
        """Drop the dynamic rows: the head holds exactly the static and learned ones."""
        with self._context():
            self.head.truncate()

    @abstractmethod
    def peak_memory(self) -> int | None:
        """Peak bytes of the device's allocator, or None where the process's own memory is the measure."""

    # Shared parts.

    def _empty(self, slot: AnySlot) -> None:
        slot.text = []
        self._empty_caches(slot)

    def _forward(self, slot: AnySlot, inputs: Any, index: Array) -> Step[Array]:
        logits = self._run_step(slot, inputs, index)
        token, local = self._greedy(logits)
        wanted = slot.wants_confidence and self.head.name != "full"
        confidence = self._top_probability(logits) if wanted else None
        # Start now: if the value is asked for later, the next step may be queued before it.
        self._start([token, local] if confidence is None else [token, local, confidence])
        return Step(self._last_hidden(), logits, token, local, confidence)

    def _inputs(self, ids: Ids) -> tuple[Any, Array]:
        """Embedding rows of some tokens, each once, and where each token's row is, ``[1, n]``."""
        needed, index = np.unique(ids, return_inverse=True)
        return self._rows.inputs(needed), self._index(index)

    def _check_logits(self, logits: Array) -> None:
        """Check the logits of a prompt: finite, and what :attr:`_transform` makes of the head's product.

        The second decides whether the full head's tiles would be treated as the model treats its logits.
        """
        if not self._all_finite(logits):
            raise self._not_finite()
        product = self._head_logits()
        transformed = product if self._transform is None else self._transform(product)
        self._transform_is_known = self._equal(transformed, logits)

    def _full_head(self, hidden: Array) -> HeadScan:
        """The full head as verification and scoring read it, for hidden states like ``hidden``.

        Raises:
            ModelError: the model changes its logits in a way that the tiles cannot repeat.
        """
        if not self._transform_is_known:
            raise ModelError(
                f"{self._framework_name} changes its logits in a way that vt does not know, so it can "
                "neither verify nor score texts of this model; generate with --approximate or --head full"
            )
        if self._scan is None:
            self._scan = self._scan_head(hidden)
        return self._scan

    def _not_finite(self) -> ModelError:
        return ModelError(
            f"the model gives logits that are not finite numbers in {self.dtype}; "
            "use --dtype bfloat16 or --dtype float32"
        )

    # Hooks: the framework.

    def _context(self) -> AbstractContextManager[object]:
        """What every call of the framework runs in, such as a device or a mode. Entered several times a step,
        also while it is entered already.
        """
        return nullcontext()

    # Hooks: the framework's caches.

    @abstractmethod
    def _new_slot(self) -> AnySlot:
        """A slot with empty caches."""

    @abstractmethod
    def _copy_slot(self, slot: AnySlot) -> AnySlot:
        """See :meth:`copy`."""

    @abstractmethod
    def _export_caches(self, slot: AnySlot) -> tuple[dict[str, np.ndarray], Any]:
        """See :meth:`export`."""

    @abstractmethod
    def _restore_caches(self, slot: AnySlot, arrays: Mapping[str, np.ndarray], state: Any) -> None:
        """See :meth:`restore`."""

    @abstractmethod
    def _empty_caches(self, slot: AnySlot) -> None:
        """Give a slot empty caches."""

    @abstractmethod
    def _rewind_caches(self, slot: AnySlot, count: int) -> None:
        """Take back ``count`` tokens, maybe none, and let later ones be taken back."""

    @abstractmethod
    def _cut_caches(self, slot: AnySlot, count: int) -> bool:
        """Take back ``count`` tokens, maybe none, whenever they were read. Returns False, and does nothing,
        where another prompt cannot go on from these caches.
        """

    def _allow_rewind(self, slot: AnySlot) -> None:
        """A prompt was read: tokens from now on can be taken back."""

    def _caches_are_stale(self, slot: AnySlot, length: int) -> bool:
        """Whether a text of ``length`` tokens needs caches that are computed anew."""
        return False

    def _piece_tokens(self, slot: AnySlot, length: int) -> int:
        """Tokens that run at once when a slot is to hold ``length`` tokens."""
        return PREFILL_TOKENS

    # Hooks: running the body.

    @abstractmethod
    def _run(self, slot: AnySlot, inputs: Any, index: Array) -> Array:
        """Run some tokens, ``index [1, n]`` into the rows of ``inputs``; logits ``[1, size]`` of the last."""

    def _run_step(self, slot: AnySlot, inputs: Any, index: Array) -> Array:
        """:meth:`_run` for a step that may be taken back."""
        return self._run(slot, inputs, index)

    def _finish_piece(self, slot: AnySlot) -> None:
        """A piece of a text was read and another follows."""

    def _release(self) -> None:
        """Drop what the last call looked up and left on the device."""

    @abstractmethod
    def _copy_states(self, start: int, end: int) -> Array:
        """Hidden states of positions ``start … end - 1`` of the last :meth:`_run`, as a copy of their own."""

    @abstractmethod
    def _last_hidden(self) -> Array:
        """Hidden state ``[1, hidden]`` of the last position of the last :meth:`_run`."""

    @abstractmethod
    def _head_logits(self) -> Array:
        """Logits of the last :meth:`_run` as they left the head, before what the model does to them."""

    @abstractmethod
    def _scan_head(self, hidden: Array) -> HeadScan:
        """The full head as it is read from the store, for hidden states of the float type of ``hidden``."""

    # Hooks: arrays.

    @abstractmethod
    def _greedy(self, logits: Array) -> tuple[Array, Array]:
        """Full and local id ``[1]`` of the largest of ``logits [1, size]``; of equal ones the lowest full id.

        The full id is :data:`NOT_A_NUMBER` where a logit is NaN.
        """

    @abstractmethod
    def _top_probability(self, logits: Array) -> Array:
        """Largest softmax probability of ``logits [1, size]``, in float32."""

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


def _pieces(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of at most ``size`` tokens that cover ``start … end - 1``."""
    for at in range(start, end, size):
        yield at, min(at + size, end)
