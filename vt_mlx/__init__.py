"""The MLX backend: Apple Silicon; MLX's CPU build elsewhere."""

from __future__ import annotations

from vt_mlx.decoder import load_decoder

__all__ = ["load_decoder"]
