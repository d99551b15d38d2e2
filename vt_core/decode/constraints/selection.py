"""What the head must compute at a position whose allowed tokens are known.

Where all allowed ids are active, the reduced head holds every candidate and its choice is the full head's.
Where a few are missing, their rows are gathered. Only where many are missing is the full head scanned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vt_core.decode.constraints.constraint import Bools
from vt_core.types import Ids

#: Share of all rows up to which missing rows are gathered. A gathered row costs three times as much as a
#: scanned one, but it is active from then on.
_GATHERED_SHARE = 8


@dataclass(frozen=True)
class Selection:
    """The allowed ids of a position, seen from the active rows."""

    places: Ids  #: local ids of the allowed active rows
    missing: Ids  #: allowed full ids that are not active and are to be gathered, sorted
    certain: bool  #: whether ``places`` and ``missing`` are all allowed ids


def select(allowed: Bools, active: Ids) -> Selection:
    """Compare the allowed with the active ids.

    Args:
        allowed: whether each full id is allowed, ``[V]``.
        active: full ids of the active rows in local order.
    """
    places = np.flatnonzero(allowed[active])
    absent = int(np.count_nonzero(allowed)) - len(places)
    none: Ids = np.empty(0, dtype=np.int64)
    if absent == 0:
        return Selection(places, none, True)
    limit = max(1, min(len(allowed) // _GATHERED_SHARE, len(active)))
    if absent > limit and len(places):
        return Selection(places, none, False)
    others = allowed.copy()
    others[active] = False
    missing = np.flatnonzero(others)
    # A choice on the reduced head needs at least some candidates.
    return Selection(places, missing[:limit], absent <= limit)
