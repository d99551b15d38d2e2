"""Small types that decoding and the backends share. Imports nothing of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt


class DeviceArray(Protocol):
    """What the shared code asks of a backend's arrays; numpy's, PyTorch's and MLX's have it."""

    def item(self) -> Any:
        """The only value, on the host; waits for the device."""

    def tolist(self) -> Any:
        """The values, on the host; waits for the device."""

    def __getitem__(self, key: Any, /) -> Any:
        """A part of the array, or with None the array with one more axis in front."""


#: An array of a backend, on its device. The decoding loop passes it on and never looks inside.
Array = TypeVar("Array", bound=DeviceArray)


@dataclass(slots=True)
class Steps(Generic[Array]):
    """The last ``k`` positions of a read, on the device, possibly still to be computed."""

    hidden: Array  #: ``[k, hidden]``, the input of the head
    logits: Array  #: ``[k, n]`` of the active rows, in the run's dtype
    token: Array  #: greedy choices, full ids ``[k]``; :data:`NOT_A_NUMBER` where a logit is NaN
    local: Array  #: the same as local ids ``[k]``
    confidence: Array | None  #: their probabilities among the active rows ``[k]``, if asked for

    def part(self, start: int, end: int) -> Steps[Array]:
        """Positions ``start … end - 1``."""
        arrays = (self.hidden, self.logits, self.token, self.local, self.confidence)
        return Steps(*(None if array is None else array[start:end] for array in arrays))

    @staticmethod
    def joined(parts: Sequence[Steps[Array]], concatenate: Callable[[list[Array]], Array]) -> Steps[Array]:
        """The positions of several reads one after the other."""
        if len(parts) == 1:
            return parts[0]

        def join(name: str) -> Array:
            return concatenate([getattr(part, name) for part in parts])

        confidence = None if parts[0].confidence is None else join("confidence")
        return Steps(join("hidden"), join("logits"), join("token"), join("local"), confidence)


@dataclass(slots=True, eq=False)
class Slot(Generic[Array]):
    """One text's place in a decoder: its caches, and the tokens that they hold. Backends add their caches."""

    #: Tokens that the caches hold, full ids; one that was queued before it was known is an array ``[1]``.
    text: list[Any] = field(default_factory=list)
    can_rewind: bool = True  #: whether tokens that were read can be taken back
    rereads: bool = False  #: whether what was read since the slot was settled is read again after a rewind
    takes_back_steps: bool = True  #: whether reads of one token may be taken back, or only longer ones
    wants_confidence: bool = False  #: whether :meth:`Decoder.confidence` will be asked of its steps

    @property
    def ids(self) -> list[int]:
        """Tokens that the caches hold, full ids; waits for the device where one was queued."""
        self.text = [token if isinstance(token, int) else int(token.item()) for token in self.text]
        return self.text


#: The slot class of a backend.
AnySlot = TypeVar("AnySlot", bound=Slot[Any])


@dataclass(slots=True)
class Read(Generic[AnySlot]):
    """Tokens for a slot to read after what it holds, in one pass."""

    slot: AnySlot
    ids: list[int]  #: full ids, at least one; each is active


#: Stands for the token of a step whose logits hold a NaN; larger than any id, and fits 32 bits.
NOT_A_NUMBER = int(np.iinfo(np.int32).max)


class Scored(NamedTuple):
    """Log-probabilities of given ids at ``k`` positions, and what greedy decoding would choose there."""

    log_probs: npt.NDArray[np.float64]  #: natural logarithms, ``[k]``
    choices: npt.NDArray[np.int64]  #: full ids, ``[k]``
    top_ids: npt.NDArray[np.int64]  #: the most likely full ids, most likely first, ``[k, top]``
    top_log_probs: npt.NDArray[np.float64]  #: their log-probabilities, ``[k, top]``

    def part(self, start: int, end: int | None) -> Scored:
        """Some of the positions."""
        return Scored(*(values[start:end] for values in self))  # type: ignore[arg-type]

    def with_more(self, more: Scored) -> Scored:
        """These positions and then others."""
        return Scored(*map(np.concatenate, zip(self, more, strict=True)))  # type: ignore[arg-type]
