"""Unmodified mlx-lm on the same weights: :class:`vt_core.decode.backend.Stock` for MLX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from vt_mlx.device import on_device, peak_memory, pick_device, pick_dtype, reset_peak


class MlxStock:
    """See :class:`vt_core.decode.backend.Stock`."""

    def __init__(self, model: nn.Module, device: mx.Device, dtype: mx.Dtype) -> None:
        self.device = "gpu" if device.type == mx.DeviceType.gpu else "cpu"
        self.dtype = str(dtype).removeprefix("mlx.core.")
        self._model, self._device = model, device

    def generate(
        self, prompt: Sequence[int], max_tokens: int, eos_ids: Collection[int], on_token: Callable[[], object]
    ) -> list[int]:
        out: list[int] = []
        with on_device(self._device):
            for token, _ in generate_step(mx.array(list(prompt)), self._model, max_tokens=max_tokens):
                on_token()
                out.append(int(token))
                if token in eos_ids:
                    break
        return out

    def next_logits(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        # The last token runs alone, as in generation.
        with on_device(self._device):
            cache = make_prompt_cache(self._model)
            if len(context) > 1:
                self._model(mx.array([list(context[:-1])]), cache=cache)
            logits = self._model(mx.array([list(context[-1:])]), cache=cache)[0, -1]
            return np.array(logits.astype(mx.float32))

    def text_logits(self, prompt: Sequence[int], text: Sequence[int]) -> npt.NDArray[np.float32]:
        # With a cache, as in generation: without one, layers of Gemma 3n that share keys and values compute
        # their own.
        with on_device(self._device):
            context = mx.array([[*prompt, *text[:-1]]])
            logits = self._model(context, cache=make_prompt_cache(self._model))
            return np.array(logits[0, -len(text) :].astype(mx.float32))

    def peak_memory(self) -> int | None:
        return peak_memory(self._device)


def load_stock(path: Path, *, device: str | None, dtype: str | None, stored: str) -> MlxStock:
    """See :meth:`vt_core.decode.backend.StockBackend.load_stock`."""
    target = pick_device(device)
    run_dtype = pick_dtype(dtype, stored, target)
    reset_peak(target)
    with on_device(target):
        model, _ = load_model(path, lazy=True)
        model.set_dtype(run_dtype)
        mx.eval(model.parameters())
    mx.clear_cache()
    return MlxStock(model, target, run_dtype)
