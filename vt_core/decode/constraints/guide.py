"""Chooses the tokens of a request that a grammar restricts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vt_core.decode.blocks import Draft
from vt_core.decode.constraints.constraint import Constraint
from vt_core.decode.constraints.selection import select
from vt_core.decode.decoder import Decoder
from vt_core.decode.sampling import Sampler
from vt_core.types import Ids

Floats = npt.NDArray[np.float32]


@dataclass
class Counts:
    """Positions of one request, by what they needed. Positions that were taken back count as well."""

    forced: int = 0  #: the grammar allowed one token
    certain: int = 0  #: all allowed rows were active; the forced ones are among them
    gathered: int = 0  #: the missing rows were read by themselves
    scanned: int = 0  #: too many rows were missing: the full head decided


class Choice(NamedTuple):
    """The token of a position."""

    token: int  #: full id
    draft: Draft | None  #: what the full head has to confirm; None where the token is final
    confidence: float | None  #: of a draft: its probability among the allowed active rows


class Guide:
    """The grammar of one request beside its loop: it has taken the tokens that the loop has chosen."""

    def __init__(
        self,
        constraint: Constraint,
        decoder: Decoder[Any, Any],
        sampler: Sampler,
        activate: Callable[[Ids], None],
        exact: bool,
    ) -> None:
        """
        Args:
            constraint: of the request, at the beginning of the answer.
            decoder: runs the model.
            sampler: of the request.
            activate: makes full ids active for the request.
            exact: whether the choices must be the full head's.
        """
        self.constraint = constraint
        self.counts = Counts()
        self._decoder, self._sampler, self._activate = decoder, sampler, activate
        self._exact = exact and decoder.head.name != "full"

    def prepare(self) -> None:
        """Compute the mask of the next position; raises as :meth:`choose`."""
        _ = self.constraint.allowed

    def choose(
        self, position: int, pending: tuple[int, ...], logits: Floats, ids: Ids, hidden: Any
    ) -> Choice:
        """Choose the next token, and take it.

        Args:
            position: index of the token within the request.
            pending: tokens of the block before it.
            logits: of the active rows, ``[n]``.
            ids: full ids of these rows.
            hidden: hidden state of the position, ``[1, hidden]``.

        Raises:
            ConstraintError: the grammar became too complex, or no token continues the answer.
        """
        choice = self._choose(Draft(position, pending), logits, ids, hidden)
        self.constraint.advance(choice.token)
        return choice

    def replace(self, count: int, token: int) -> None:
        """Take back the last ``count`` tokens, and take another one."""
        self.constraint.rewind(count)
        self.constraint.advance(token)

    def _choose(self, draft: Draft, logits: Floats, ids: Ids, hidden: Any) -> Choice:
        allowed, sampler = self.constraint.allowed, self._sampler
        found = select(allowed, ids)
        magnitude = sampler.magnitude(logits)
        ids, logits = ids[found.places], logits[found.places]
        self.counts.forced += len(ids) + len(found.missing) == 1 and found.certain
        if len(found.missing) and (self._exact or not len(ids)):
            missing = self._decoder.row_logits(hidden, found.missing)
            ids, logits = np.concatenate([ids, found.missing]), np.concatenate([logits, missing])
            self._activate(found.missing)
            self.counts.gathered += found.certain
        elif found.certain:
            self.counts.certain += not len(found.missing)
        draft = Draft(draft.position, draft.pending, None, magnitude, allowed)
        if self._exact and found.certain:
            return Choice(self._decoder.choose_certain(hidden, logits, ids, draft, sampler), None, None)
        adjusted = sampler.adjust(logits, ids, draft.pending)
        token = sampler.pick(adjusted, ids, draft.position)
        if not self._exact:
            return Choice(token, None, None)
        self.counts.scanned += 1
        weights = np.exp(adjusted - adjusted.max())
        confidence = float(weights[ids == token][0] / weights.sum())
        return Choice(token, Draft(draft.position, draft.pending, adjusted, magnitude, allowed), confidence)
