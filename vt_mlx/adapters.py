"""Low-rank adapters beside the layers of a body."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from vt_core.files.adapters import LowRank


def adapt(model: nn.Module, adapter: Sequence[LowRank]) -> None:
    """Wrap the layers that an adapter names in mlx-lm's own low-rank layers.

    Raises:
        ModelError: a layer is missing or has other sizes.
    """
    layers = dict(model.named_modules())
    adapted = []
    for part in adapter:
        # An adapter of a multimodal model has transformers' names of layers.
        name = part.module if part.module in layers else _inner_name(part.module)
        layer = layers.get(name)
        if layer is None or type(layer) not in (nn.Linear, nn.QuantizedLinear):
            raise part.missing()
        outputs, inputs = layer.weight.shape
        if isinstance(layer, nn.QuantizedLinear):
            inputs = inputs * 32 // layer.bits
        part.check(outputs, inputs)
        lora = LoRALinear.from_base(layer, r=len(part.a), scale=part.scale)
        lora.lora_a, lora.lora_b = mx.array(part.a.T), mx.array(part.b.T)
        mx.eval(lora.lora_a, lora.lora_b)
        adapted.append((name, lora.eval()))
    model.update_modules(tree_unflatten(adapted))


def _inner_name(name: str) -> str:
    """mlx-lm's name of a layer of the language model inside a multimodal model."""
    prefix = next((prefix for prefix in ("model.language_model.", "model.") if name.startswith(prefix)), "")
    return f"language_model.model.{name.removeprefix(prefix)}"
