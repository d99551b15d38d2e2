"""Weights of eight or four bits, made from float ones while a model is loaded; PyTorch has their kernels.

Rows of the head have eight bits in both modes, one scale a row, so that a row's value does not depend on
which others are active. Linear layers have eight bits in the same way, or four in groups of 64 columns.
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

#: Floats of this size are held at once, where weights are quantized or made float again.
CHUNK_BYTES = 8 << 20
#: Up to so many positions the kernels for eight bits are faster than making floats, on a CPU.
_FEW = 8
#: Columns that may share a scale and a zero.
GROUPS = (256, 128, 64, 32)
#: How many do where layers are quantized here: the first that divides a layer's width.
_GROUPS = (64, 32)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127 ``[n, columns]`` as float32, and the scale of each row, ``[n]`` of the
    rows' type. Their product is close to ``rows``.
    """
    wide = rows.float()
    # Two passes: the norm of infinity, and aminmax, take twenty times as long on a CPU.
    largest = torch.maximum(wide.amax(dim=1), -wide.amin(dim=1))
    # The scale is rounded first, to the type in which it is kept.
    scales = largest.div_(127).to(rows.dtype).clamp_min_(torch.finfo(rows.dtype).tiny)
    numbers = wide / scales.float()[:, None]
    return numbers.round_().clamp_(-127, 127), scales


def product(hidden: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``hidden [k, columns]`` times rows of eight bits, ``[k, n]`` in the type of ``hidden``."""
    if len(hidden) <= _FEW and _has_kernel(hidden):
        return torch._weight_int8pack_mm(hidden, weight, scales)
    dtype = _float_type(hidden)
    wide = hidden.to(dtype)
    out = hidden.new_empty(len(hidden), len(weight))
    for part in _pieces(weight):
        out[:, part] = F.linear(wide, weight[part].to(dtype).mul_(scales[part, None]))
    return out


def _pieces(weight: torch.Tensor) -> Iterator[slice]:
    """Rows whose floats take :data:`CHUNK_BYTES` in float32."""
    # A multiple of 16: kernels treat the last rows of a product otherwise.
    step = max(16, CHUNK_BYTES // (weight.shape[1] * 4) // 16 * 16)
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _has_kernel(hidden: torch.Tensor) -> bool:
    # In float32 the kernel is there, and takes a hundred times as long as in bfloat16. It reads 16 columns at
    # a time, and other memory behind a row's last ones (Gemma 3n has layers of 4).
    whole = hidden.shape[1] % 16 == 0
    return whole and hidden.device.type == "cpu" and hidden.dtype != torch.float32


def _float_type(hidden: torch.Tensor) -> torch.dtype:
    """In which type many positions are multiplied."""
    slow = hidden.device.type == "cpu" and not multiplies(hidden.dtype)
    return torch.float32 if slow else hidden.dtype


class Int8Linear(nn.Module):
    """A linear layer whose rows have eight bits each, and a scale."""

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
        """As floats, made anew: some state-space layers multiply by it themselves."""
        return self.numbers.to(self.scales.dtype) * self.scales[:, None]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        out = product(flat, self.numbers, self.scales).view(*hidden.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int4Linear(nn.Module):
    """A linear layer whose weights have four bits, with a scale and a zero for each group of columns."""

    def __init__(
        self,
        numbers: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        bias: nn.Parameter | None,
    ) -> None:
        """Of ``(number - 8) * scale + zero``: numbers ``[rows, columns]`` int32 from 0 to 15, scales and
        zeros ``[rows, columns / group]``, the group one of :data:`GROUPS`; rows come by the sixteen.
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
        """The layer that is close to one of floats."""
        numbers = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
        scales, zeros = (weight.new_empty(len(weight), weight.shape[1] // group) for _ in range(2))
        for part in _pieces(weight):
            numbers[part], scales[part], zeros[part] = quantize_groups(weight[part], group)
        return cls(numbers, scales, zeros, bias)

    @property
    def weight(self) -> torch.Tensor:
        """As floats, made anew: the layer's answer to each single column."""
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
    """Whole numbers from 0 to 15 ``[n, columns]`` int32, and the scales and zeros ``[n, columns / group]`` of
    ``(number - 8) * scale + zero``, in the weights' type.
    """
    groups = weight.view(len(weight), -1, group).float()
    least, most = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((most - least) / 15).clamp_min_(torch.finfo(weight.dtype).tiny).to(weight.dtype)
    zeros = (least + 8 * scales.float()).to(weight.dtype)
    # Both are rounded first, to the type in which they are kept.
    numbers = (groups - zeros.float()[..., None]).div_(scales.float()[..., None]).add_(8)
    return numbers.round_().clamp_(0, 15).to(torch.int32).view(weight.shape), scales, zeros


def _pack_on_cpu(numbers: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)


def _pack_on_cuda(numbers: torch.Tensor) -> torch.Tensor:
    # Two numbers a byte, the first one in the upper half; the kernel reads 16 columns times this at a time.
    tiles = next(count for count in (8, 4, 2) if numbers.shape[1] % (16 * count) == 0)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)


def _quantized(layer: nn.Linear, bits: int) -> Int4Linear | Int8Linear:
    """A linear layer with fewer bits; eight where the kernels for four do not take it: its width holds no
    whole groups, or its rows do not come by the sixteen.
    """
    weight = layer.weight.detach()
    rows, columns = weight.shape
    for group in _GROUPS if bits == 4 and rows % 16 == 0 else ():
        if columns % group == 0:
            return Int4Linear.of(weight, layer.bias, group)
    return Int8Linear(weight, layer.bias)


def pick_bits(mode: str, device: torch.device, dtype: torch.dtype) -> int:
    """Bits of a linear layer's weights in the mode ``int8`` or ``int4``.

    Raises:
        BackendError: PyTorch has no kernel for four bits here.
    """
    if mode == "int8":
        return 8
    remedy = "use --quantize int8"
    if device.type not in ("cpu", "cuda"):
        raise BackendError(
            f"PyTorch multiplies weights of four bits on cpu and cuda, not on {device}; {remedy}"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise BackendError(f"weights of four bits need a GPU of compute capability 8.0 or more; {remedy}")
    if device.type == "cuda" and dtype != torch.bfloat16:
        raise BackendError(f"weights of four bits run in bfloat16 on cuda; leave --dtype out, or {remedy}")
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        raise BackendError(f"weights of four bits need PyTorch 2.6 or newer; install it, or {remedy}")
    return 4


def multiplies_four_bits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a kernel for weights of four bits here."""
    try:
        pick_bits("int4", device, dtype)
    except BackendError:
        return False
    return True


@register_quantization_config("vt")
class LoadingBits(QuantizationConfigMixin):
    """Asks transformers' loader to quantize linear layers, each as soon as it is read."""

    def __init__(self, bits: int) -> None:
        self.quant_method: Any = "vt"
        self.bits = bits


@register_quantizer("vt")
class _Quantizer(HfQuantizer):
    """Replaces linear layers while transformers loads a model: at most one is held as floats."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and type(model.get_submodule(path)) is nn.Linear

    @property
    def quantized_element_size(self) -> float:
        # By this the loader estimates how much to allocate on an accelerator.
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
        # What is freed here piles up in the C library's heap: 1.3 GB for Qwen2.5 0.5B in four bits, which
        # take 0.2.
        del weight, layer
        trim_heap()
        missing_keys.discard(full_layer_name)
        return {}
