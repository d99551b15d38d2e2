"""Whether a body gives tokens of several slots, read at once, what each slot has alone: two texts are tried.

Models use caches, masks and positions in ways that cannot all be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vt_core.decode.types import Read, Steps
from vt_core.errors import ModelError
from vt_core.types import Ids

if TYPE_CHECKING:
    from vt_core.decode.decoder import Decoder

#: Tokens of the two texts, and of the reads after them.
_TEXTS, _READS = (5, 9), ((1, 1), (3, 1), (1, 4))
#: Exceptions of models that use caches, masks or positions in a way that works for one slot only.
_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, ModelError)

#: Reads tokens in several slots.
Reads: TypeAlias = "Callable[[Sequence[Read[Any]]], list[Steps[Any]]]"
#: Hidden states of reads, in host memory ``[n, hidden]``.
States: TypeAlias = "Callable[[list[Steps[Any]]], npt.NDArray[np.float32]]"


def runs_alike(decoder: Decoder[Any, Any], alone: Reads, together: Reads, states: States) -> bool:
    """Whether both ways to read give the same hidden states, up to the decoder's tolerance.

    Args:
        decoder: opens the slots, and holds active rows.
        alone: reads slot by slot.
        together: reads all slots at once. A model that fails to is not alike.
        states: copies what was read to host memory.
    """
    try:
        return all(_agreements(decoder, alone, together, states))
    except decoder.out_of_memory:
        raise
    except _ERRORS:
        return False


def _agreements(decoder: Decoder[Any, Any], alone: Reads, together: Reads, states: States) -> Iterator[bool]:
    """Whether each read together gives the hidden states of the reads alone."""
    tolerance = decoder.together_tolerance[decoder.dtype]
    texts, done = _texts(decoder.head.vocabulary.ids), list(_TEXTS)
    slots = [decoder.open() for _ in texts]
    for slot, text, length in zip(slots, texts, done, strict=True):
        decoder.prefill(slot, text[:length])
    copies = [decoder.copy(slot) for slot in slots]
    for counts in _READS:
        each = zip(texts, done, counts, strict=True)
        pieces = [text[length : length + count].tolist() for text, length, count in each]
        expected = states(alone([Read(*pair) for pair in zip(slots, pieces, strict=True)]))
        found = states(together([Read(*pair) for pair in zip(copies, pieces, strict=True)]))
        yield bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))
        done = [length + count for length, count in zip(done, counts, strict=True)]


def _texts(active: Ids) -> Ids:
    """Texts of active ids ``[2, n]``, from the first quarter on: special tokens come first."""
    count = max(_TEXTS) + max(map(sum, zip(*_READS, strict=True)))
    places = np.linspace(len(active) // 4, len(active) - 1, len(_TEXTS) * count).astype(np.int64)
    return active[places].reshape(len(_TEXTS), count)
