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

from vt_core.decode.blocks import Block, Draft, Verified
from vt_core.decode.probabilities import log_probabilities
from vt_core.decode.sampling import Sampler
from vt_core.decode.tiles import HeadScan
from vt_core.decode.types import NOT_A_NUMBER, AnySlot, Array, Read, Scored, Steps
from vt_core.decode.verification import choose_certain, verify
from vt_core.errors import ModelError
from vt_core.types import Ids
from vt_core.vocab.heads import Head

#: Tokens of a prompt that run at once. Bounds the memory of attention scores.
PREFILL_TOKENS = 2048

#: Hidden states in one piece of :meth:`Decoder.states`. It bounds the logits of a tile; with so many
#: positions the product takes far longer than reading the head.
POSITIONS = 256


class Decoder(ABC, Generic[Array, AnySlot]):
    """A model body and a head, for texts in slots: :meth:`open`, :meth:`prefill`, reads, :meth:`close`.

    Laws, tested on every backend: ``prefill(a + b)`` leaves the state of ``prefill(a)`` followed by reads of
    ``b``, in whatever pieces; reduced logits are the gathered columns of the full ones; what happens in one
    slot never changes another.
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

    def prefill(self, slot: AnySlot, ids: Ids) -> Steps[Array]:
        """Read full ids (at least one) after what a slot holds; returns the last position.

        Tokens read so far can no longer be taken back.

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
            logits = self._run(slot, *self._inputs(whole[start:end]))
            steps = self._steps(self._hidden(), logits, slot.wants_confidence)
            self._check_logits(steps.logits)
            self._settle_caches(slot)
        return steps

    def read(self, reads: Sequence[Read[AnySlot]], *, together: bool = True) -> list[Steps[Array]]:
        """Read one or more tokens in each of several slots; returns all their positions.

        Args:
            reads: of different slots. Tokens are active.
            together: whether the body may run once for all slots. Products of other sizes round differently:
                False gives each slot what it would have alone.
        """
        assert all(token in self.head.vocabulary for read in reads for token in read.ids), "not active"
        with self._context():
            if together and len(reads) > 1 and self._fits_together(reads):
                return self._read_together(reads)
            return [self._read_alone(read.slot, read.ids) for read in reads]

    def step(self, slot: AnySlot, token: int) -> Steps[Array]:
        """Read one more token, a full id that is active."""
        return self.read([Read(slot, [token])])[0]

    def follow(self, slot: AnySlot, steps: Steps[Array]) -> Steps[Array]:
        """Read the greedy choice of one position without waiting for it; only where :attr:`can_follow`."""
        with self._context():
            slot.text.append(steps.token)
            if slot.takes_back_steps:
                self._prepare_rewind(slot)
            (rows,) = self.head.pieces
            logits = self._run_steps(slot, self._rows.tied_inputs(rows), steps.local[None], 1)
            return self._steps(self._hidden(), logits, slot.wants_confidence)

    def rewind(self, slot: AnySlot, count: int) -> None:
        """Take back the last ``count`` tokens of a slot, among those read since :meth:`prefill` or
        :meth:`settle`. Only where :attr:`Slot.can_rewind`.
        """
        if not count:
            return
        with self._context():
            del slot.text[-count:]
            # Some layers keep no past: their state is an earlier one, from which the rest is read again.
            if lost := self._rewind_caches(slot, count):
                again = np.array(slot.ids[-lost:], dtype=np.int64)
                for start, end in _pieces(0, lost, self._read_tokens(slot, lost)):
                    self._run_steps(slot, *self._inputs(again[start:end]), 1)

    def settle(self, slot: AnySlot) -> None:
        """Keep the tokens of a slot for good: only what is read from now on can be taken back."""
        with self._context():
            self._settle_caches(slot)

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

    def slot_bytes(self, slot: AnySlot) -> int:
        """Bytes of the caches of a slot."""
        with self._context():
            return self._cache_bytes(slot)

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
        """Drop the caches of a slot. Safe at any moment."""
        with self._context():
            self._empty(slot)

    def poll(self, steps: Steps[Array]) -> list[int]:
        """The greedy choice of each position, full ids; waits for the device. Ties go to the lowest full id.

        Raises:
            ModelError: a logit is not a number.
        """
        with self._context():
            tokens: list[int] = steps.token.tolist()
        if max(tokens) >= NOT_A_NUMBER:
            raise self._not_finite()
        return tokens

    def logits(self, steps: Steps[Array]) -> npt.NDArray[np.float32]:
        """Logits of the active rows in local order, float32 ``[k, size]``; waits for the device.

        Raises:
            ModelError: a logit is not a number.
        """
        with self._context():
            logits = self._to_host(steps.logits)
        if np.isnan(logits).any():
            raise self._not_finite()
        return logits

    def confidence(self, steps: Steps[Array]) -> list[float]:
        """Probability of the greedy choice of each position among the active rows; waits for the device."""
        assert steps.confidence is not None, "the slot does not ask for confidence"
        with self._context():
            values: list[float] = steps.confidence.tolist()
        return values

    def verify(self, blocks: Sequence[Block[Array]]) -> list[Verified]:
        """The full head's choices for the decoded positions of several requests, from one read of the head;
        see :func:`vt_core.decode.verification.verify`.
        """
        with self._context():
            hidden = self._concatenate([part for block in blocks for part in block.hidden])
            return verify(self._full_head(hidden), hidden, blocks)

    def row_logits(self, hidden: Array, ids: Ids) -> npt.NDArray[np.float32]:
        """Logits ``[n]`` of some full ids, active or not, for one position, ``hidden [1, hidden]``, as the
        whole head has them.
        """
        with self._context():
            return self._full_head(hidden).row_logits(hidden, ids)

    def choose_certain(
        self, hidden: Array, logits: npt.NDArray[np.float32], ids: Ids, draft: Draft, sampler: Sampler
    ) -> int:
        """The full head's choice at a position all of whose candidates are known; see
        :func:`vt_core.decode.verification.choose_certain`.
        """
        with self._context():
            return choose_certain(self._full_head(hidden), hidden, logits, ids, draft, sampler)[0]

    def states(self, ids: Ids, start: int) -> Generator[Array, None, None]:
        """Read a text of full ids in a slot of its own, and yield the hidden states of its positions from
        ``start`` on, in order, ``[k, hidden]`` with ``k`` at most :data:`POSITIONS`. Each piece stays valid.
        """
        slot = self.open()
        try:
            for first, end in _pieces(0, len(ids), self._piece_tokens(slot, len(ids))):
                with self._context():
                    self._check_logits(self._run(slot, *self._inputs(ids[first:end])))
                    self._finish_piece(slot)
                    every = self._every_state()
                for at in range(max(start - first, 0), end - first, POSITIONS):
                    with self._context():
                        states = every[at : at + POSITIONS]
                    yield states
        finally:
            self.close(slot)

    def score(self, states: Sequence[Array], targets: Ids, top: int = 0) -> Scored:
        """Log-probabilities of the full ids ``targets [k]`` at the ``k`` positions of some states, and of the
        ``top`` likeliest ids there, with one read of the full head.
        """
        with self._context():
            hidden = self._concatenate(list(states))
            return log_probabilities(self._full_head(hidden), hidden, targets, top)

    def release(self) -> None:
        """Drop what the last call left on the device; only between calls."""
        with self._context():
            self._release()

    @abstractmethod
    def peak_memory(self) -> int | None:
        """Peak bytes of the device's allocator, or None where the process's own memory is the measure."""

    # Shared parts.

    def _empty(self, slot: AnySlot) -> None:
        slot.text = []
        self._empty_caches(slot)

    def _read_alone(self, slot: AnySlot, ids: list[int]) -> Steps[Array]:
        if self._caches_are_stale(slot, len(slot.text) + len(ids)):
            steps = [self.prefill(slot, np.array([token])) for token in ids]
            return steps[0] if len(steps) == 1 else self._joined(steps)
        if slot.takes_back_steps or len(ids) > 1:
            self._prepare_rewind(slot)
        slot.text.extend(ids)
        most = self._read_tokens(slot, len(ids))
        pieces = [ids[at : at + most] for at in range(0, len(ids), most)]
        steps = []
        for piece in pieces:
            logits = self._run_steps(slot, *self._active_inputs(piece), len(piece))
            steps.append(self._steps(self._hidden(), logits, slot.wants_confidence))
        return steps[0] if len(steps) == 1 else self._joined(steps)

    def _read_together(self, reads: Sequence[Read[AnySlot]]) -> list[Steps[Array]]:
        """Run the body once for several slots."""
        for read in reads:
            read.slot.text.extend(read.ids)
        inputs, index = self._active_inputs([token for read in reads for token in read.ids])
        counts = [len(read.ids) for read in reads]
        logits = self._run_together([read.slot for read in reads], inputs, index, counts)
        every = self._steps(self._hidden(), logits, any(read.slot.wants_confidence for read in reads))
        ends = np.cumsum(counts).tolist()
        return [_part(every, end - count, end) for count, end in zip(counts, ends, strict=True)]

    def _probe_together(self, errors: tuple[type[Exception], ...], tolerance: float) -> bool:
        """Read two short texts of different length, alone and together. Returns whether the hidden states are
        the same up to a relative ``tolerance``, and none of some ``errors`` was raised.
        """
        ids = np.resize(self.head.vocabulary.ids, 24).tolist()
        alone, together = [], []
        for text in (ids[:4], ids[4:13]):
            slot = self.open()
            self.prefill(slot, np.array(text))
            alone.append(slot)
            together.append(self.copy(slot))
        at = 13
        for counts in ((1, 1), (3, 1), (1, 4)):
            pieces = [ids[at : at + counts[0]], ids[at + counts[0] : at + sum(counts)]]
            at = (at + sum(counts)) % 12
            expected = [self._read_alone(*pair).hidden for pair in zip(alone, pieces, strict=True)]
            reads = [Read(*pair) for pair in zip(together, pieces, strict=True)]
            try:
                found = [steps.hidden for steps in self._read_together(reads)]
                first, second = (self._to_host(self._concatenate(list(part))) for part in (expected, found))
            except errors:
                return False
            if not np.linalg.norm(first - second) <= tolerance * np.linalg.norm(first):
                return False
        return True

    def _steps(self, hidden: Array, logits: Array, wants_confidence: bool) -> Steps[Array]:
        token, local = self._greedy(logits)
        wanted = wants_confidence and self.head.name != "full"
        confidence = self._top_probability(logits) if wanted else None
        # Start now: if the value is asked for later, the next step may be queued before it.
        self._start([token, local] if confidence is None else [token, local, confidence])
        return Steps(hidden, logits, token, local, confidence)

    def _joined(self, parts: list[Steps[Array]]) -> Steps[Array]:
        def joined(name: str) -> Array:
            return self._concatenate([getattr(part, name) for part in parts])

        confidence = None if parts[0].confidence is None else joined("confidence")
        return Steps(joined("hidden"), joined("logits"), joined("token"), joined("local"), confidence)

    def _active_inputs(self, ids: list[int]) -> tuple[Any, Array]:
        """As :meth:`_inputs` for active tokens: those of a tied model have their rows on the device."""
        if not self._tied or (len(ids) > 1 and len(self.head.pieces) > 1):
            return self._inputs(np.array(ids))
        local = self.head.vocabulary.local(ids).astype(np.int64)
        if len(ids) > 1:
            (rows,) = self.head.pieces
        else:
            rows, place = self.head.locate(int(local[0]))
            local = np.array([place])
        return self._rows.tied_inputs(rows), self._index(local)

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
    def _cache_bytes(self, slot: AnySlot) -> int:
        """See :meth:`slot_bytes`."""

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
    def _rewind_caches(self, slot: AnySlot, count: int) -> int:
        """Take back ``count`` tokens, at least one; see :meth:`rewind`.

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
        return PREFILL_TOKENS

    def _read_tokens(self, slot: AnySlot, count: int) -> int:
        """How many of ``count`` tokens after a prompt run at once; a slot's text holds them already."""
        return count

    def _fits_together(self, reads: Sequence[Read[AnySlot]]) -> bool:
        """Whether the body can run these reads at once."""
        return False

    # Hooks: running the body.

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
        """Run ``counts[i]`` tokens of each slot at once, where :meth:`_fits_together`. They can be undone.

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

    # Hooks: arrays.

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


def _pieces(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of at most ``size`` tokens that cover ``start … end - 1``."""
    for at in range(start, end, size):
        yield at, min(at + size, end)


def _part(steps: Steps[Array], start: int, end: int) -> Steps[Array]:
    """Positions ``start … end - 1`` of some steps."""
    confidence = steps.confidence
    return Steps(
        steps.hidden[start:end],
        steps.logits[start:end],
        steps.token[start:end],
        steps.local[start:end],
        None if confidence is None else confidence[start:end],
    )
