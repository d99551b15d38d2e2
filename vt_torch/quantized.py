"""Float weights that are quantized to 8 or 4 bits while a model is loaded, for PyTorch's own kernels.

Head rows have 8 bits in both modes, with one scale per row, so that a row's values do not depend on which
other rows are active. Linear layers have 8 bits in the same way, or 4 bits in groups of 64 columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from vt_core.errors import BackendError
from vt_core.host import trim_heap
from vt_torch.device import multiplies

#: Bytes of floats that exist at once while weights are quantized or dequantized.
CHUNK_BYTES = 8 << 20
#: Up to this many positions, the 8-bit kernels of a CPU are faster than dequantizing.
_FEW = 8
#: Columns that may share a scale and a zero, in 4-bit layers.
GROUPS = (256, 128, 64, 32)
#: The same for layers that are quantized here: the first that divides the layer's width is used.
_GROUPS = (64, 32)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to 8 bits.

    Returns:
        Integers from -127 to 127 as float32 ``[n, columns]``, and the scale of each row ``[n]`` in the rows'
        type. Their product approximates ``rows``.
    """
    wide = rows.float()
    # Two passes: the infinity norm and aminmax take twenty times as long on a CPU.
    largest = torch.maximum(wide.amax(dim=1), -wide.amin(dim=1))
    # Rounded first to the type in which it is kept.
    scales = largest.div_(127).to(rows.dtype).clamp_min_(torch.finfo(rows.dtype).tiny)
    numbers = wide / scales.float()[:, None]
    return numbers.round_().clamp_(-127, 127), scales


def product(hidden: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Product of ``hidden [k, columns]`` and 8-bit rows, ``[k, n]`` in the type of ``hidden``."""
    if len(hidden) <= _FEW and _has_kernel(hidden):
        return torch._weight_int8pack_mm(hidden, weight, scales)
    dtype = _float_type(hidden)
    wide = hidden.to(dtype)
    out = hidden.new_empty(len(hidden), len(weight))
    for part in _pieces(weight):
        out[:, part] = F.linear(wide, weight[part].to(dtype).mul_(scales[part, None]))
    return out


def _pieces(weight: torch.Tensor) -> Iterator[slice]:
    """Slices of rows that take :data:`CHUNK_BYTES` in float32."""
    # A multiple of 16: kernels treat the last rows of a product otherwise.
    step = max(16, CHUNK_BYTES // (weight.shape[1] * 4) // 16 * 16)
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _has_kernel(hidden: torch.Tensor) -> bool:
    # The float32 kernel takes a hundred times as long as the bfloat16 one. Both read 16 columns at a time,
    # beyond the end of narrower rows (Gemma 3n has layers with 4 inputs).
    whole = hidden.shape[1] % 16 == 0
    return whole and hidden.device.type == "cpu" and hidden.dtype != torch.float32


def _float_type(hidden: torch.Tensor) -> torch.dtype:
    """Float type in which many positions are multiplied."""
    slow = hidden.device.type == "cpu" and not multiplies(hidden.dtype)
    return torch.float32 if slow else hidden.dtype


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per row."""

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = weight.new_empty(len(weight))
        for part in _pieces(weight):
            numbers[part], scales[part] = quantize_rows(weight[part])
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """Dequantized weights, computed at each access: some state-space layers multiply by it themselves."""
        return self.numbers.to(self.scales.dtype) * self.scales[:, None]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        out = product(flat, self.numbers, self.scales).view(*hidden.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights, and a scale and a zero for each group of columns."""

    def __init__(
        self,
        numbers: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        bias: nn.Parameter | None,
    ) -> None:
        """A weight is ``(number - 8) * scale + zero``.

        Args:
            numbers: ``[rows, columns]`` int32 from 0 to 15; the number of rows is a multiple of 16.
            scales: ``[rows, columns / group]``, the group one of :data:`GROUPS`.
            zeros: the same shape.
            bias: of the layer.
        """
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        self._group, self._cuda = numbers.shape[1] // scales.shape[1], numbers.device.type == "cuda"
        pack = _pack_on_cuda if self._cuda else _pack_on_cpu
        self.register_buffer("numbers", pack(numbers.contiguous()))
        self.register_buffer("scales_and_zeros", torch.stack([scales.T, zeros.T], dim=-1).contiguous())
        self.bias = bias

    @classmethod
    def of(cls, weight: torch.Tensor, bias: nn.Parameter | None, group: int) -> Int4Linear:
        """Quantize the weight of a float layer."""
        numbers = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
        scales, zeros = (weight.new_empty(len(weight), weight.shape[1] // group) for _ in range(2))
        for part in _pieces(weight):
            numbers[part], scales[part], zeros[part] = quantize_groups(weight[part], group)
        return cls(numbers, scales, zeros, bias)

    @property
    def weight(self) -> torch.Tensor:
        """Dequantized weights, computed at each access as the layer's output for each unit vector."""
        dtype, device = self.scales_and_zeros.dtype, self.scales_and_zeros.device
        return self._product(torch.eye(self.in_features, dtype=dtype, device=device)).T

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        out = self._product(flat).view(*hidden.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def _product(self, flat: torch.Tensor) -> torch.Tensor:
        kernels = torch.ops.aten
        multiply = kernels._weight_int4pack_mm if self._cuda else kernels._weight_int4pack_mm_for_cpu
        return multiply(flat, self.numbers, self._group, self.scales_and_zeros)


def quantize_groups(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize weights to 4 bits: ``(number - 8) * scale + zero``.

    Returns:
        Integers from 0 to 15 ``[n, columns]`` int32; scales and zeros ``[n, columns / group]`` in the type of
        the weights.
    """
    groups = weight.view(len(weight), -1, group).float()
    least, most = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((most - least) / 15).clamp_min_(torch.finfo(weight.dtype).tiny).to(weight.dtype)
    zeros = (least + 8 * scales.float()).to(weight.dtype)
    # Both are rounded first to the type in which they are kept.
    numbers = (groups - zeros.float()[..., None]).div_(scales.float()[..., None]).add_(8)
    return numbers.round_().clamp_(0, 15).to(torch.int32).view(weight.shape), scales, zeros


def _pack_on_cpu(numbers: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)


def _pack_on_cuda(numbers: torch.Tensor) -> torch.Tensor:
    # Two numbers per byte, the first in the upper half. The kernel reads 16 * tiles columns at a time.
    tiles = next(count for count in (8, 4, 2) if numbers.shape[1] % (16 * count) == 0)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)


def _quantized(layer: nn.Linear, bits: int) -> Int4Linear | Int8Linear:
    """Quantize a linear layer. It gets 8 bits if the 4-bit kernels cannot run it: they need a width of whole
    groups, and a number of rows that is a multiple of 16.
    """
    weight = layer.weight.detach()
    rows, columns = weight.shape
    for group in _GROUPS if bits == 4 and rows % 16 == 0 else ():
        if columns % group == 0:
            return Int4Linear.of(weight, layer.bias, group)
    return Int8Linear(weight, layer.bias)


def pick_bits(mode: str, device: torch.device, dtype: torch.dtype) -> int:
    """Bits of the linear layers in the mode ``int8`` or ``int4``.

    Raises:
        BackendError: PyTorch has no 4-bit kernel for this device and type.
    """
    if mode == "int8":
        return 8
    remedy = "use --quantize int8"
    if device.type not in ("cpu", "cuda"):
        raise BackendError(
            f"PyTorch has kernels for 4-bit weights on cpu and cuda, not on {device}; {remedy}"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise BackendError(f"4-bit weights need a GPU of compute capability 8.0 or more; {remedy}")
    if device.type == "cuda" and dtype != torch.bfloat16:
        raise BackendError(f"4-bit weights run in bfloat16 on cuda; leave --dtype out, or {remedy}")
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        raise BackendError(f"4-bit weights need PyTorch 2.6 or newer; install it, or {remedy}")
    return 4


def multiplies_four_bits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a 4-bit kernel for a device and type."""
    try:
        pick_bits("int4", device, dtype)
    except BackendError:
        return False
    return True


@register_quantization_config("vt")
class LoadingBits(QuantizationConfigMixin):
    """Makes transformers' loader quantize each linear layer as soon as it is read."""

    def __init__(self, bits: int) -> None:
        self.quant_method: Any = "vt"
        self.bits = bits


@register_quantizer("vt")
class _Quantizer(HfQuantizer):
    """Replaces linear layers while transformers loads a model; at most one exists in floats at a time."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and type(model.get_submodule(path)) is nn.Linear

    @property
    def quantized_element_size(self) -> float:
        # The loader estimates from this how much to allocate on an accelerator.
        return self.quantization_config.bits / 8

    def get_quantize_ops(self) -> _Replacement:
        return _Replacement(self.quantization_config.bits)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Replacement:
    def __init__(self, bits: int) -> None:
        self._bits = bits

    def convert(
        self, tensors: dict[str, Any], *, model: Any, full_layer_name: str, missing_keys: set[str], **_: Any
    ) -> dict[str, torch.Tensor]:
        (weight,) = tensors.values()
        path = full_layer_name.rpartition(".")[0]
        layer = model.get_submodule(path)
        layer.weight = nn.Parameter(weight[0] if isinstance(weight, list) else weight, requires_grad=False)
        smaller = _quantized(layer, self._bits)
        smaller._is_hf_initialized = True
        model.set_submodule(path, smaller)
        # Freed memory stays in the C library's heap: 1.3 GB for Qwen2.5 0.5B, whose 4-bit layers take 0.2.
        del weight, layer
        trim_heap()
        missing_keys.discard(full_layer_name)
        return {}
