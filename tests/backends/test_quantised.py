"""What is particular to weights in MLX's affine format; what they share with others the other tables test."""

from __future__ import annotations

import pytest

from tests.tiny import QUANTISED
from vt_core.errors import BackendError


@pytest.mark.parametrize("kind", QUANTISED)
def test_transformers_is_not_given_what_it_would_misread(kind, tiny):
    stock = pytest.importorskip("vt_torch.stock")
    with pytest.raises(BackendError, match="transformers reads no weights in MLX's affine format"):
        stock.load_stock(tiny(kind)[0], device="cpu", dtype="float32", stored="float32")
