"""Linear layers whose weights are integers: 8 bits with one scale per row, or 4 bits in groups of columns.

A model directory holds such layers as :mod:`vt_core.files.integers` describes. 8-bit weights are used as they
are stored; 4-bit ones are arranged for the device's kernel while a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vt_core.errors import BackendError, ModelError
from vt_core.files import integers
from vt_torch.device import multiplies

#: Bytes of floats that exist at once while weights are quantized or dequantized.
CHUNK_BYTES = 8 << 20
#: Up to this many positions, the 8-bit kernels of a CPU are faster than dequantizing.
_FEW = 8
#: Columns that may share a scale and a zero, in 4-bit layers.
GROUPS = (256, 128, 64, 32)
#: Rows of 4-bit weights that are arranged at once. The kernels lay out 16 to 64 rows together.
_PACKED_ROWS = 1024


def product(hidden: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Product of ``hidden [k, columns]`` and 8-bit rows, ``[k, n]`` in the type of ``hidden``."""
    if len(hidden) <= _FEW and _has_kernel(hidden) and _is_aligned(weight):
        return torch._weight_int8pack_mm(hidden, weight, scales)
    dtype = _float_type(hidden)
    wide = hidden.to(dtype)
    out = hidden.new_empty(len(hidden), len(weight))
    for part in _pieces(weight):
        rows = weight[part].to(dtype)
        if dtype == torch.float16:  # sums of unscaled rows may exceed it
            out[:, part] = F.linear(wide, rows.mul_(scales[part, None]))
        else:  # the integers are exact, and there are fewer sums than weights to scale
            out[:, part] = F.linear(wide, rows).mul_(scales[part])
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


def _is_aligned(weight: torch.Tensor) -> bool:
    """Whether the kernel can read 8-bit rows: with 4 positions or more it crashes at other addresses."""
    return weight.data_ptr() % 16 == 0


def _float_type(hidden: torch.Tensor) -> torch.dtype:
    """Float type in which many positions are multiplied."""
    slow = hidden.device.type == "cpu" and not multiplies(hidden.dtype)
    return torch.float32 if slow else hidden.dtype


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per row."""

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor, bias: nn.Parameter | None) -> None:
        """
        Args:
            numbers: ``[rows, columns]`` int8.
            scales: ``[rows]``, in the float type of the run.
            bias: of the layer.
        """
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        # Numbers in a mapped file may stand anywhere; a copy is aligned.
        self.register_buffer("numbers", numbers if _is_aligned(numbers) else numbers.clone())
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
        pairs: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        bias: nn.Parameter | None,
    ) -> None:
        """A weight is ``(number - 8) * scale + zero``.

        Args:
            pairs: ``[rows, columns / 2]`` uint8, two numbers from 0 to 15 in each, the first in the upper
                half; the number of rows is a multiple of 16.
            scales: ``[rows, columns / group]``, the group one of :data:`GROUPS`.
            zeros: the same shape.
            bias: of the layer.
        """
        super().__init__()
        self.out_features, self.in_features = len(pairs), 2 * pairs.shape[1]
        self._group, self._cuda = self.in_features // scales.shape[1], pairs.device.type == "cuda"
        pack = _pack_on_cuda if self._cuda else _pack_on_cpu
        self.register_buffer("numbers", pack(pairs))
        self.register_buffer("scales_and_zeros", torch.stack([scales.T, zeros.T], dim=-1).contiguous())
        self.bias = bias

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


def pack_pairs(numbers: torch.Tensor) -> torch.Tensor:
    """Two of the numbers ``[rows, columns]`` from 0 to 15 in each byte, the first in the upper half."""
    return (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)


def unpack_pairs(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack_pairs`; int32."""
    return torch.stack([pairs >> 4, pairs & 15], dim=-1).flatten(1).to(torch.int32)


def _pack_on_cpu(pairs: torch.Tensor) -> torch.Tensor:
    packed = torch.empty(pairs.shape, dtype=torch.uint8)
    for start in range(0, len(pairs), _PACKED_ROWS):
        rows = slice(start, start + _PACKED_ROWS)
        packed[rows] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack_pairs(pairs[rows]), 1)
    return packed


def _pack_on_cuda(pairs: torch.Tensor) -> torch.Tensor:
    # The kernel reads 16 * tiles columns at a time.
    tiles = next(count for count in (8, 4, 2) if 2 * pairs.shape[1] % (16 * count) == 0)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)


class StoredLinear(nn.Module):
    """The tensors of a layer in a model directory, while the model is loaded."""

    def __init__(self, layer: nn.Linear, path: str, tensors: Mapping[str, Any]) -> None:
        """
        Args:
            layer: the float layer that the model declares.
            path: name of the layer in the file.
            tensors: of the file, as slices by name.

        Raises:
            ModelError: the tensors do not fit the layer.
        """
        super().__init__()
        rows, columns = layer.out_features, layer.in_features
        group = integers.group_of(rows, columns) if f"{path}.zeros" in tensors else None
        groups = (rows,) if group is None else (rows, columns // group)
        expected = {"numbers": ("I8", (rows, columns)), "scales": ("BF16", groups)}
        if group is not None:
            expected |= {"numbers": ("U8", (rows, columns // 2)), "zeros": ("BF16", groups)}
        for part, (kind, shape) in expected.items():
            stored = tensors.get(f"{path}.{part}")
            if stored is None or (stored.get_dtype(), tuple(stored.get_shape())) != (kind, shape):
                found = "missing" if stored is None else f"{stored.get_dtype()} {list(stored.get_shape())}"
                raise ModelError(
                    f"{path}.{part} is {found} and should be {kind} {list(shape)}; convert the model again"
                )
            dtype = _STORED.get(kind, layer.weight.dtype)
            self.register_buffer(part, torch.empty(shape, dtype=dtype, device="meta"))
        self._shape, self._group, self.bias = (rows, columns), group, layer.bias

    @property
    def weight(self) -> torch.Tensor:
        """A tensor without values: Mamba initializes weights by name before they are loaded."""
        return torch.empty(self._shape, device="meta")

    def finished(self) -> nn.Module:
        """The layer that runs, on the device and in the float type of the loaded tensors."""
        if self._group is None:
            return Int8Linear(self.numbers, self.scales, self.bias)
        return Int4Linear(self.numbers, self.scales, self.zeros, self.bias)


#: Types of integers as safetensors calls them. Scales take the run's float type.
_STORED = {"I8": torch.int8, "U8": torch.uint8}


class StoredWeight:
    """Stands for a slice of a file, of which transformers' loader takes everything with ``tensor[...]``: the
    floats ``[rows, columns]`` of a layer that is stored as integers but not linear in the model.
    """

    def __init__(self, path: str, tensors: Mapping[str, Any]) -> None:
        self._numbers, self._scales = tensors[f"{path}.numbers"], tensors[f"{path}.scales"]
        self._zeros = tensors.get(f"{path}.zeros")

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        numbers, scales = self._numbers[...], self._scales[...].float()
        if self._zeros is None:
            return numbers.float() * scales[:, None]
        groups = unpack_pairs(numbers).float().view(*scales.shape, -1)
        return ((groups - 8) * scales[..., None] + self._zeros[...].float()[..., None]).flatten(1)


def check_kernels(mode: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that weights in the mode ``int8`` or ``int4`` can be multiplied.

    Raises:
        BackendError: PyTorch has no 4-bit kernel for this device and type.
    """
    if mode == "int8":
        return
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


def multiplies_four_bits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a 4-bit kernel for a device and type."""
    try:
        check_kernels("int4", device, dtype)
    except BackendError:
        return False
    return True
