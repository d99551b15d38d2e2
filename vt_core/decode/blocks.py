"""Blocks of decoded positions that are to be verified, and how their tokens compare with the full head's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

from vt_core.decode.sampling import Sampler
from vt_core.decode.tiles import Bools, Floats
from vt_core.decode.types import Array


@dataclass(frozen=True)
class Draft:
    """A position to verify: what was chosen on the reduced head, and what it takes to choose again."""

    position: int  #: index of the token within the request
    pending: tuple[int, ...]  #: the block's tokens before it, which penalties see as well
    reduced: Floats | None = None  #: adjusted logits of the active rows, where the choice is not plain greedy
    magnitude: float = 0.0  #: largest absolute logit of the active rows before they were adjusted
    #: Whether each full id may be chosen, ``[V]``, in all drafts of a block or in none; None allows all. Then
    #: ``reduced`` are the allowed active rows, and ``magnitude`` is that of all active rows.
    allowed: Bools | None = None


@dataclass(frozen=True)
class Block(Generic[Array]):
    """Positions of one request to verify."""

    hidden: Sequence[Array]  #: hidden states, together ``[k, hidden]``
    drafts: Sequence[Draft]  #: the ``k`` positions
    sampler: Sampler  #: of the request; its context ends where the block begins


class Verified(NamedTuple):
    """The full head's choices for a block."""

    choices: list[int]  #: full ids, one for each position
    settled: int  #: positions that were near ties


def accepted_prefix(drafted: Sequence[int], checked: Sequence[int]) -> tuple[int, int | None]:
    """Compare drafted with checked ids.

    Returns:
        The number of drafted ids before the first difference, and the checked id there (None: no difference).
    """
    for index, (draft, check) in enumerate(zip(drafted, checked, strict=True)):
        if draft != check:
            return index, check
    return len(drafted), None
