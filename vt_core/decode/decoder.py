"""A model body with its caches and a head: what every backend's decoder does alike.

A backend subclasses :class:`Decoder` and fills in the hooks of :class:`vt_core.decode.framework.Framework`.
The loop (:mod:`vt_core.decode.loop`) calls the public methods.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.decode.blocks import Block, Draft, Verified
from vt_core.decode.framework import Framework
from vt_core.decode.probabilities import log_probabilities
from vt_core.decode.sampling import Sampler
from vt_core.decode.tiles import HeadScan
from vt_core.decode.together import runs_alike
from vt_core.decode.types import NOT_A_NUMBER, AnySlot, Array, Read, Scored, Steps
from vt_core.decode.verification import choose_certain, verify
from vt_core.errors import ModelError
from vt_core.types import Ids
from vt_core.vocab.heads import Head

#: Hidden states in one piece of :meth:`Decoder.states`. It bounds the logits of a tile; with so many
#: positions the product takes far longer than reading the head.
POSITIONS = 256


class Decoder(Framework[Array, AnySlot]):
    """A model body and a head, for texts in slots: :meth:`open`, :meth:`prefill`, reads, :meth:`close`.

    Laws, tested on every backend: ``prefill(a + b)`` leaves the state of ``prefill(a)`` followed by reads of
    ``b``, in whatever pieces; reduced logits are the gathered columns of the full ones; what happens in one
    slot never changes another.
    """

    head: Head[Any, Array]
    dtype: str  #: float type of the run
    compiled = False  #: whether steps of one token run compiled
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
        self._runs_alike: bool | None = None  #: whether slots may be read together; None: not known yet

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
            return self._read_each(reads)

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

    # Shared parts.

    def _empty(self, slot: AnySlot) -> None:
        slot.text = []
        self._empty_caches(slot)

    def _read_each(self, reads: Sequence[Read[AnySlot]]) -> list[Steps[Array]]:
        return [self._read_alone(read.slot, read.ids) for read in reads]

    def _read_alone(self, slot: AnySlot, ids: list[int]) -> Steps[Array]:
        if self._caches_are_stale(slot, len(slot.text) + len(ids)):
            steps = [self.prefill(slot, np.array([token])) for token in ids]
            return Steps.joined(steps, self._concatenate)
        if slot.takes_back_steps or len(ids) > 1:
            self._prepare_rewind(slot)
        slot.text.extend(ids)
        most = self._read_tokens(slot, len(ids))
        pieces = [ids[at : at + most] for at in range(0, len(ids), most)]
        steps = []
        for piece in pieces:
            logits = self._run_steps(slot, *self._active_inputs(piece), len(piece))
            steps.append(self._steps(self._hidden(), logits, slot.wants_confidence))
        return Steps.joined(steps, self._concatenate)

    def _read_together(self, reads: Sequence[Read[AnySlot]]) -> list[Steps[Array]]:
        """Run the body once for several slots."""
        for read in reads:
            read.slot.text.extend(read.ids)
        inputs, index = self._active_inputs([token for read in reads for token in read.ids])
        counts = [len(read.ids) for read in reads]
        logits = self._run_together([read.slot for read in reads], inputs, index, counts)
        every = self._steps(self._hidden(), logits, any(read.slot.wants_confidence for read in reads))
        ends = np.cumsum(counts).tolist()
        return [every.part(end - count, end) for count, end in zip(counts, ends, strict=True)]

    def _fits_together(self, reads: Sequence[Read[AnySlot]]) -> bool:
        """Whether the body can run these reads at once. The first call reads a few tokens to find out."""
        if not self._divides([read.slot for read in reads]):
            return False
        if self._runs_alike is None:
            self._runs_alike = runs_alike(self, self._read_each, self._read_together, self._host_states)
        return self._runs_alike

    def _host_states(self, parts: Sequence[Steps[Array]]) -> npt.NDArray[np.float32]:
        """Hidden states ``[n, hidden]`` of several reads."""
        return self._to_host(self._concatenate([steps.hidden for steps in parts]))

    def _steps(self, hidden: Array, logits: Array, wants_confidence: bool) -> Steps[Array]:
        token, local = self._greedy(logits)
        wanted = wants_confidence and self.head.name != "full"
        confidence = self._top_probability(logits) if wanted else None
        # Start now: if the value is asked for later, the next step may be queued before it.
        self._start([token, local] if confidence is None else [token, local, confidence])
        return Steps(hidden, logits, token, local, confidence)

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


def _pieces(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of at most ``size`` tokens that cover ``start … end - 1``."""
    for at in range(start, end, size):
        yield at, min(at + size, end)
