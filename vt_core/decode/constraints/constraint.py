"""The grammar of one answer, position by position."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import ConstraintError
from vt_core.types import Ids

#: Whether each full id is allowed, ``[V]``.
Bools = npt.NDArray[np.bool_]


class Constraint:
    """Follows the tokens of one answer. The same tokens always give the same masks.

    A constraint is always at one position, that of the next token. :meth:`advance` takes a token and
    :meth:`rewind` takes tokens back.
    """

    def __init__(
        self, matcher: Any, rows: int, eos: Ids, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """
        Args:
            matcher: llguidance's ``LLMatcher`` at the beginning of the answer; belongs to this object.
            rows: number of full ids.
            eos: full ids that end the answer, sorted.
            clock: clock of :attr:`seconds`.
        """
        self._matcher, self._rows, self._eos, self._clock = matcher, rows, eos, clock
        self._ends = 0  #: EOS tokens taken; the matcher sees none of them
        self._allowed: Bools | None = None
        self.seconds = 0.0  #: time spent in the library
        self._buffer = np.zeros(-(-rows // 32) * 4, dtype=np.uint8)

    @property
    def allowed(self) -> Bools:
        """Whether each full id may come next, ``[V]``; not to be changed. It stays as it is when the
        constraint moves on. EOS is allowed where the answer may end.

        Raises:
            ConstraintError: the grammar became too complex, or no token continues the answer.
        """
        if self._allowed is None:
            started = self._clock()
            self._allowed = self._compute()
            self.seconds += self._clock() - started
        return self._allowed

    @property
    def finished(self) -> bool:
        """Whether nothing but EOS is allowed."""
        return self._matcher.is_stopped() or not self.allowed.any(where=self._not_eos())

    @property
    def only(self) -> int | None:
        """The next token if no other is allowed."""
        return int(self.allowed.argmax()) if np.count_nonzero(self.allowed) == 1 else None

    def forced(self) -> list[int]:
        """Tokens that the grammar forces from here on, as the model's tokenizer would write them. Each is a
        proposal: :attr:`allowed` decides at its position.
        """
        if self._ends:
            return []
        started = self._clock()
        tokens = [int(token) for token in self._matcher.compute_ff_tokens()]
        self.seconds += self._clock() - started
        self._check()
        return tokens

    def prefix(self, tokens: list[int]) -> list[int]:
        """The first of some proposed tokens, as far as the grammar can take them one after the other."""
        ordinary = [*takewhile(lambda token: token not in self._eos, tokens)]
        if self._ends or not ordinary:
            return []
        count = self._matcher.validate_tokens(ordinary)
        self._check()
        return ordinary[:count]

    def accepts(self, token: int) -> bool:
        """Whether a full id may come next."""
        return bool(self.allowed[token])

    def advance(self, token: int) -> None:
        """Take a token that may come next.

        Raises:
            ConstraintError: the grammar became too complex.
        """
        assert self.accepts(token), f"token {token} is not allowed here"
        self._allowed = None
        if token in self._eos:
            self._ends += 1
        else:
            started = self._clock()
            self._matcher.consume_token(token)
            self.seconds += self._clock() - started
            self._check()

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        if count == 0:
            return
        self._allowed = None
        ends = min(count, self._ends)
        self._ends -= ends
        if count > ends:
            self._matcher.rollback(count - ends)
            self._check()

    def _compute(self) -> Bools:
        if self._ends:
            return np.zeros(self._rows, dtype=bool)
        self._matcher.unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer.nbytes)
        self._check()
        allowed = np.unpackbits(self._buffer, count=self._rows, bitorder="little").view(bool)
        if not allowed.any():
            raise _unwritable()
        allowed.flags.writeable = False
        return allowed

    def _not_eos(self) -> Bools:
        others = np.ones(self._rows, dtype=bool)
        others[self._eos] = False
        return others

    def _check(self) -> None:
        if self._matcher.is_error():
            message = first_line(self._matcher.get_error())
            if "NoExtension" in message:
                raise _unwritable()
            raise ConstraintError(f"the grammar cannot be followed any further ({message})")


def _unwritable() -> ConstraintError:
    return ConstraintError(
        "no token of the model's tokenizer continues the answer as the grammar wants it; this tokenizer "
        "cannot write such a text"
    )


def first_line(message: str) -> str:
    """What llguidance says, without the state of its parser."""
    return " ".join(message.strip().split("\n<state>")[0].split("\n\n")[0].split())
