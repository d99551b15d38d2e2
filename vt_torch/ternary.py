"""BitNet's layers: weights of -1, 0 and 1, four to a byte, which multiply activations rounded to 8 bits.

The arithmetic is that of transformers' layers (`transformers/integrations/bitnet.py`), which need a compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vt_core.errors import ModelError
from vt_core.files.model_dir import ModelDirectory

_PER_BYTE, _BITS = 4, 2
_LEAST, _MOST = -128, 127


@dataclass(frozen=True)
class TernaryLayout:
    """How a model's layers are stored and rounded, according to config.json."""

    online: bool  #: whether the file has the float weights, which are rounded when the model is loaded
    divides: bool  #: whether the layer divides by its scale (the older layers, "bitlinear")

    def stays(self, device: torch.device) -> bool:
        """Whether layers stay in 4 bits on a device."""
        return False


def ternary_layout(directory: ModelDirectory) -> TernaryLayout:
    """The layout of a BitNet model.

    Raises:
        ModelError: a variant that transformers does not have, or that vt does not read.
    """
    settings = directory.config["quantization_config"]
    kind = settings.get("linear_class", "bitlinear")
    mode = settings.get("quantization_mode", "offline")
    kept = settings.get("modules_to_not_convert")
    if kind not in ("bitlinear", "autobitlinear") or mode not in ("online", "offline"):
        raise ModelError(
            f"{directory.name} holds BitNet layers of the kind {kind!r} ({mode!r}), which are unknown"
        )
    online = mode == "online" and kind == "autobitlinear"
    if settings.get("use_rms_norm") or (online and kept):
        option = "modules_to_not_convert" if online and kept else "use_rms_norm"
        raise ModelError(f"{directory.name} holds BitNet layers with {option}, which vt does not read")
    return TernaryLayout(online, kind == "bitlinear")


def declare_ternary(model: nn.Module, layout: TernaryLayout, tensors: Mapping[str, Any]) -> None:
    """Replace the linear layers of a model that was just declared by :class:`StoredTernary`.

    Args:
        model: the model, on the meta device.
        layout: how the layers are stored.
        tensors: tensors of the body by name: slices of an open safetensors file.

    Raises:
        ModelError: the tensors of a layer do not fit.
    """
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    for path in linear:
        if layout.online or f"{path}.weight_scale" in tensors:
            parent, _, last = path.rpartition(".")
            layer: Any = model.get_submodule(path)
            setattr(model.get_submodule(parent), last, StoredTernary(layout, layer, path, tensors))


class StoredTernary(nn.Module):
    """The tensors of a layer as they are stored, while the model is loaded."""

    def __init__(
        self, layout: TernaryLayout, layer: nn.Linear, path: str, tensors: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self._layout, self.bias = layout, layer.bias
        stored = tensors.get(f"{path}.weight")
        shape, kind = (None, None) if stored is None else (tuple(stored.get_shape()), stored.get_dtype())
        rows, columns = layer.out_features, layer.in_features
        packed = kind == "U8"
        if shape != (rows // _PER_BYTE if packed else rows, columns) or (packed and layout.online):
            raise ModelError(
                f"{path}.weight has the type {kind} and the shape {list(shape or ())}, which does not fit a "
                f"BitNet layer of {columns} inputs and {rows} outputs; convert the model again"
            )
        dtype = torch.uint8 if packed else layer.weight.dtype
        self.register_buffer("weight", torch.empty(shape, dtype=dtype, device="meta"))
        if not layout.online:
            self.register_buffer("weight_scale", torch.empty(1, dtype=layer.weight.dtype, device="meta"))

    def finished(self) -> nn.Module:
        """The layer that runs, on the device and in the float type of the loaded tensors."""
        if self._layout.online:
            return TernaryLinear(rounded_weights(self.weight), None, self.bias)
        scale, weight = self.weight_scale, self.weight
        weight = unpacked(weight, scale.dtype) if weight.dtype == torch.uint8 else weight
        return (DividingTernaryLinear if self._layout.divides else TernaryLinear)(weight, scale, self.bias)


def unpacked(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``[4 * rows, columns]`` of -1, 0 and 1 from ``[rows, columns]``: the lowest two bits hold the first
    quarter of the rows.
    """
    return torch.cat([((words >> _BITS * part & 3).to(dtype) - 1) for part in range(_PER_BYTE)])


def rounded_weights(weight: torch.Tensor) -> torch.Tensor:
    """Weights rounded to -1, 0 and 1 times the mean of their sizes."""
    wide = weight.float()
    scale = 1.0 / wide.abs().mean().clamp_(min=1e-5)
    return ((wide * scale).round().clamp(-1, 1) / scale).to(weight.dtype)


def _largest(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)


class TernaryLinear(nn.Module):
    """Rounds its inputs to 8 bits, and multiplies its result by a scale if there is one."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor | None, bias: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        wide = inputs.float()
        factor = _MOST / _largest(wide)
        rounded = ((wide * factor).round().clamp(_LEAST, _MOST) / factor).to(inputs.dtype)
        outputs = nn.functional.linear(rounded, self.weight, self.bias)
        return outputs if self.scale is None else outputs * self.scale


class DividingTernaryLinear(TernaryLinear):
    """The older layer: whole numbers as inputs, and a scale that divides the result."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        factor = _MOST / _largest(inputs)
        rounded = (inputs * factor).round().clamp(_LEAST, _MOST)
        outputs = nn.functional.linear(rounded, self.weight) / (self.scale * factor)
        return outputs if self.bias is None else outputs + self.bias
