"""Low-rank adapters beside the layers of a body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from vt_core.files.adapters import LowRank
from vt_torch.body import text_name
from vt_torch.quantized import Int4Linear, Int8Linear


def adapt(model: nn.Module, adapter: Sequence[LowRank], device: torch.device) -> None:
    """Add the low-rank parts of an adapter to the layers that it names, computed in float32 as in PEFT.

    Raises:
        ModelError: a layer is missing or has other sizes.
    """
    layers = dict(model.named_modules())
    for part in adapter:
        # An adapter of a multimodal model names layers of the language model inside it.
        layer = layers.get(part.module, layers.get(text_name(part.module)))
        if isinstance(layer, Conv1D):
            part.check(layer.nf, layer.nx)
        elif isinstance(layer, (nn.Linear, Int8Linear, Int4Linear)):
            part.check(layer.out_features, layer.in_features)
        else:
            raise part.missing()
        layer.register_buffer("lora_a", torch.from_numpy(part.a).to(device))
        layer.register_buffer("lora_b", torch.from_numpy(part.b).to(device))
        layer.register_forward_hook(_LowRankPart(part.scale))


class _LowRankPart:
    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        narrow = nn.functional.linear(inputs[0].to(layer.lora_a.dtype), layer.lora_a)
        return (output + nn.functional.linear(narrow, layer.lora_b) * self._scale).to(output.dtype)
