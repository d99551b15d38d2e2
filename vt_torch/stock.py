"""Unmodified transformers on the same weights: :class:`vt_core.decode.backend.Stock` for PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from vt_core.errors import BackendError, ConfigError
from vt_core.files.json_files import read_object
from vt_torch.device import peak_memory, pick_device, pick_dtype, reset_peak


class TorchStock:
    """See :class:`vt_core.decode.backend.Stock`."""

    def __init__(self, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.device = str(device)
        self.dtype = str(dtype).removeprefix("torch.")
        self._model, self._device = model, device

    def generate(
        self, prompt: Sequence[int], max_tokens: int, eos_ids: Collection[int], on_token: Callable[[], object]
    ) -> list[int]:
        ids = self._tensor(prompt)
        # Greedy, without the penalties that generation_config.json may ask for.
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(eos_ids),
            pad_token_id=0,
            streamer=_Listener(on_token),
        )
        return out[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def next_logits(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        return self._model(self._tensor(context), logits_to_keep=1).logits[0, -1].float().cpu().numpy()

    @torch.inference_mode()
    def text_logits(self, prompt: Sequence[int], text: Sequence[int]) -> npt.NDArray[np.float32]:
        context = self._tensor([*prompt, *text[:-1]])
        out = self._model(context, logits_to_keep=len(text), use_cache=False)
        return out.logits[0].float().cpu().numpy()

    def peak_memory(self) -> int | None:
        return peak_memory(self._device)

    def _tensor(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._device)


class _Listener:
    """A streamer for transformers, which passes the prompt first and then every token."""

    def __init__(self, on_token: Callable[[], object]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, _: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token()
        self._prompt_seen = True

    def end(self) -> None:
        pass


def load_stock(path: Path, *, device: str | None, dtype: str | None, stored: str) -> TorchStock:
    """See :meth:`vt_core.decode.backend.StockBackend.load_stock`."""
    target = pick_device(device)
    run_dtype = pick_dtype(dtype, stored, target)
    if read_object(path / "config.json", "configuration", ConfigError, strict=False).get("quantization"):
        raise BackendError(
            f"transformers cannot read weights in MLX's affine format, which {path} holds; leave the stock "
            "framework out, or compare with vt-mlx"
        )
    reset_peak(target)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=run_dtype)
    except ImportError as error:  # the vision part of Gemma 3n needs timm
        raise BackendError(
            f"transformers needs another package for {path}; install it, or leave the stock "
            f"framework out: {' '.join(str(error).split())}"
        ) from error
    return TorchStock(model.eval().to(target), target, run_dtype)
