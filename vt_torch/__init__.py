"""The PyTorch backend: CUDA, Jetson, CPU."""

from __future__ import annotations

from vt_torch.decoder import load_decoder

__all__ = ["load_decoder"]
