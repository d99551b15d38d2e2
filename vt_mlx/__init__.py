"""The MLX backend: Apple Silicon; MLX's CPU build elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vt_mlx.device import empty_cache
from vt_mlx.loading import check_options, load_decoder

if TYPE_CHECKING:  # a type checker holds this module against the protocol
    import vt_mlx
    from vt_core.decode.backend import Backend

    _backend: Backend = vt_mlx

__all__ = ["check_options", "empty_cache", "load_decoder"]
