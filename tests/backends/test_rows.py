"""The greedy choice on the device."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.conftest import backend_params
from vt_core.decode.types import NOT_A_NUMBER


@pytest.mark.parametrize("backend", backend_params())
def test_greedy_takes_the_lowest_full_id_of_equal_logits_and_none_beside_a_nan(backend):
    rows = importlib.import_module(f"vt_{backend}.rows")
    logits = np.array([[1, 5, 5, 2, 5], [7, 0, 7, 7, 1], [1, np.nan, 3, 2, 1], [np.nan] * 5], np.float32)
    ids = np.array([3, 40, 8, 1, 90])
    if backend == "torch":
        import torch

        token, local = rows.greedy(torch.from_numpy(logits), torch.from_numpy(ids))
    else:
        import mlx.core as mx

        token, local = rows.greedy(mx.array(logits), mx.array(ids.astype(np.int32)))
    assert token.tolist() == [8, 1, NOT_A_NUMBER, NOT_A_NUMBER]
    assert local.tolist()[:2] == [2, 3]
