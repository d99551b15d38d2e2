"""What a request asks the scheduler for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from vt_core.decode.blocks import Block
from vt_core.decode.types import Read, Slot, Steps
from vt_core.types import Ids


@dataclass(slots=True)
class Prefill:
    """Asks for a prompt to be read; answered with the steps of its last position."""

    slot: Slot[Any]
    ids: Ids


@dataclass(slots=True)
class Follow:
    """Asks for a turn before steps that are queued already are used; answered with them."""

    steps: Steps[Any]


@dataclass(slots=True)
class Check:
    """Asks for a block to be verified; answered with what the full head chooses."""

    block: Block[Any]


#: What a request may ask the scheduler for. A ``Read`` is answered with its steps, or with None: then the
#: block is to be verified first, because another request reads the full head now. ``list[int]`` are verified
#: ids; the answer is None.
Ask: TypeAlias = "Prefill | Read[Any] | Follow | Check | list[int]"
