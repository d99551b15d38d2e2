"""Drafting: proposals for the next tokens that cost next to nothing, which one read of the model checks.

The loop asks for a draft at the end of the text, chooses how much of it a read should hold, and tells the
drafter what the text became. All learning happens there, so the loop has nothing else to report::

    drafter = Drafter(acceptance, tables, rows=V, eos_ids=eos_ids)     # one per request
    drafter.begin(prompt_ids)
    drafted = drafter.draft(16, pending)                              # pending: chosen, not in the text yet
    count = best_length(drafted.rates, read_costs.seconds)            # may be 0
    ...                                                               # read [last, *drafted.ids[:count]]
    drafter.extend(accepted_ids)
"""

from __future__ import annotations

from vt_core.decode.drafting.acceptance import Acceptance
from vt_core.decode.drafting.drafter import MAX_DRAFT, Drafted, Drafter
from vt_core.decode.drafting.length import ReadCosts, best_length

__all__ = ["MAX_DRAFT", "Acceptance", "Drafted", "Drafter", "ReadCosts", "best_length"]
