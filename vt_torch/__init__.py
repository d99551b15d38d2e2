"""The PyTorch backend: CUDA, Jetson, CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vt_torch.device import empty_cache
from vt_torch.loading import check_options, load_decoder

if TYPE_CHECKING:  # a type checker holds this module against the protocol
    import vt_torch
    from vt_core.decode.backend import Backend

    _backend: Backend = vt_torch

__all__ = ["check_options", "empty_cache", "load_decoder"]
