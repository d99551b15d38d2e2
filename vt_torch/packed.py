"""Body weights that are stored in MLX's affine format, as the floats that they stand for.

PyTorch has no products of that format. What is not held in floats anyway, the tables' rows, stays packed.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch

from vt_core.errors import ModelError
from vt_core.files import packing
from vt_core.files.architectures import architecture
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import WORD_BITS

_PIECE_VALUES = 1 << 20  #: values that are dequantized at once


class PackedTensor:
    """Stands for a slice of a file, of which transformers' loader takes everything with ``tensor[...]``: then
    it is dequantized, ``[rows, columns]`` float32.
    """

    def __init__(self, words: Any, scales: Any, biases: Any, bits: int) -> None:
        """Three slices of an open safetensors file."""
        self._parts = (words, scales, biases)
        self._bits = bits

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        words, scales, biases = (part[...] for part in self._parts)
        rows, columns = len(words), words.shape[1] * WORD_BITS // self._bits
        out = torch.empty(rows, columns)
        step = max(1, _PIECE_VALUES // columns)
        for start in range(0, rows, step):
            piece = slice(start, start + step)
            factors, offsets = (part[piece].float().numpy() for part in (scales, biases))
            values = packing.dequantize_groups(words[piece].numpy(), factors, offsets, self._bits)
            out[piece] = torch.from_numpy(values)
        return out


def dequantized(directory: ModelDirectory, tensors: dict[str, Any]) -> dict[str, Any]:
    """The body's tensors by name with a :class:`PackedTensor` for each that is packed.

    Raises:
        ModelError: they are packed in a way that only MLX understands.
    """
    settings = directory.config.get("quantization")
    if not settings:
        return tensors
    kind = directory.manifest.model_type
    if not architecture(kind).same_weights_in_mlx:
        raise ModelError(
            f"{directory.name} holds quantized weights of a {kind} model in a layout that only MLX reads; "
            "run it with vt-mlx, or convert the original weights"
        )
    weights = dict(tensors)
    for name in tensors:
        module = name.removesuffix(".scales")
        if module == name:
            continue
        parts = [weights.pop(f"{module}.{part}", None) for part in ("weight", "scales", "biases")]
        own = settings.get(module)
        own = own if isinstance(own, dict) else settings
        if (mode := own.get("mode") or "affine") != "affine":
            raise ModelError(
                f"{directory.name}: {module} is quantized in the mode {mode!r}, which only MLX reads; run "
                "the model with vt-mlx, or convert the original weights"
            )
        bits, group_size = own.get("bits", 0), own.get("group_size", 0)
        if None in parts or not _fits(parts, bits, group_size):
            raise ModelError(
                f"{directory.name}: {module} is not packed as config.json says ({bits} bits in groups of "
                f"{group_size}); convert the model again"
            )
        packed, scales, biases = parts
        weights[f"{module}.weight"] = PackedTensor(packed, scales, biases, bits)
    return weights


def _fits(parts: list[Any], bits: Any, group_size: Any) -> bool:
    words, scales, biases = (part.get_shape() for part in parts)
    whole = isinstance(bits, int) and isinstance(group_size, int)
    return (
        whole
        and len(words) == 2
        and scales == biases
        and words == [scales[0], scales[1] * group_size * bits // WORD_BITS]
    )
