"""The choice and the row operations of the real backends."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.conftest import backend_params


@pytest.mark.parametrize("backend", backend_params())
def test_of_equal_logits_the_lowest_full_id_is_chosen(backend):
    rows = importlib.import_module(f"vt_{backend}.rows")
    logits = np.array([[1, 5, 5, 2, 5], [7, 0, 7, 7, 1]], np.float32)
    ids = np.array([3, 40, 8, 1, 90])
    if backend == "torch":
        import torch

        token, local = rows.greedy(torch.from_numpy(logits), torch.from_numpy(ids))
    else:
        import mlx.core as mx

        token, local = rows.greedy(mx.array(logits), mx.array(ids.astype(np.int32)))
    assert token.tolist() == [8, 1]
    assert local.tolist() == [2, 3]
