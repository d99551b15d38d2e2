from __future__ import annotations

import numpy as np

from vt_core.decode.constraints.selection import select

ROWS = 800
ACTIVE = np.array([700, 3, 5, 9, *range(20, 120)])


def allowed(*ids):
    mask = np.zeros(ROWS, dtype=bool)
    mask[list(ids)] = True
    return mask


def test_a_position_is_certain_where_all_allowed_ids_are_active():
    found = select(allowed(5, 700), ACTIVE)
    assert found.places.tolist() == [0, 2] and found.certain and len(found.missing) == 0


def test_a_few_missing_ids_are_gathered():
    found = select(allowed(5, 7, 700, 799), ACTIVE)
    assert found.places.tolist() == [0, 2] and found.certain and found.missing.tolist() == [7, 799]


def test_many_missing_ids_need_a_scan():
    found = select(allowed(5, *range(200, 320)), ACTIVE)
    assert found.places.tolist() == [2] and not found.certain and len(found.missing) == 0


def test_a_scan_has_some_candidates_even_if_none_is_active():
    found = select(allowed(*range(200, 320)), ACTIVE)
    assert len(found.places) == 0 and not found.certain
    assert found.missing.tolist() == list(range(200, 300))  # an eighth of the rows
