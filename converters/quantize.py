"""Quantizing a model while it is converted: a source whose matrices come packed in MLX's affine format.

Those that mlx-lm packs when it is not told otherwise: every matrix of a linear layer or an embedding whose
rows can be cut into groups. What is packed has the bits that MLX would give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from converters.source import Piece, ReplacedMatrices, Source, TensorInfo
from vt_core.errors import ModelError, OptionError
from vt_core.files.architectures import ARCHITECTURES, architecture
from vt_core.files.model_config import text_config
from vt_core.files.quantization import GROUP_SIZES, Quantization

if TYPE_CHECKING:
    import numpy as np

BITS = (4, 5, 6, 8)
#: Values that are packed at once; intermediate results fit the processor's cache.
PIECE_VALUES = 1 << 19
FLOAT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Piece(Piece):
    how: Quantization


class QuantizedSource(ReplacedMatrices[_Piece]):
    """Another source, its matrices packed."""

    def __init__(self, source: Source, bits: int, group_size: int, dtype: str | None) -> None:
        """`dtype`: the storage dtype to which the conversion brings all floats, where it chose one.

        Raises:
            ModelError: vt cannot tell the model's layers from their names, the model is quantized already, or
                none of its matrices fits.
            OptionError: the bits or the group size are not offered.
        """
        check_quantization(bits, group_size)
        kind = source.config.get("model_type")
        if source.config.get("quantization"):
            raise ModelError(f"{source.name} is quantized already; give the original weights.")
        row = architecture(kind)
        if not row.same_weights_in_mlx:
            offered = (name for name, row in ARCHITECTURES.items() if row.same_weights_in_mlx)
            raise ModelError(
                f"{source.name} is a {kind} model; vt quantizes {', '.join(sorted(offered))}. "
                "Quantize it with mlx_lm.convert, whose directories vt converts."
            )
        if text_config(source.config).get("enable_moe_block"):
            raise ModelError(
                f"{source.name} has experts, which vt would leave as they are; quantize it with "
                "mlx_lm.convert, whose directories vt converts for vt-mlx."
            )
        super().__init__(source)
        settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
        for info in source.tensors():
            if not _is_matrix(info, group_size):
                self._tensors.append(info)
                continue
            module = info.name.removesuffix(".weight")
            how = Quantization(bits, group_size, dtype or info.dtype)
            if module.endswith(row.eight_bit_layers):
                how = replace(how, bits=8, group_size=64)
                settings[module] = {"group_size": how.group_size, "bits": how.bits}
            self._replace(_pieces(info, module, how))
        if not self._pieces:
            raise ModelError(
                f"{source.name} has no matrix whose rows can be cut into groups of {group_size}; choose "
                "another --group-size."
            )
        self.config = source.config | {"quantization": settings}

    def _made(self, piece: _Piece, dtype: str) -> Iterator[np.ndarray]:
        from vt_core.files import packing
        from vt_core.files.dtypes import from_float32, to_float32

        how, columns = piece.how, piece.matrix.shape[1]
        step = max(1, PIECE_VALUES // columns)
        for chunk in self._source.chunks(piece.matrix.name, how.dtype):
            for start in range(0, len(chunk), step):
                values = to_float32(chunk[start : start + step], how.dtype)
                if piece.kind == "weight":
                    yield packing.quantize(values, how.bits, how.group_size)[0]
                    continue
                groups = values.reshape(len(values), -1, how.group_size)
                scales, biases = packing.scales_and_biases(groups, how.bits)
                yield from_float32(scales if piece.kind == "scales" else biases, dtype)


def check_quantization(bits: int, group_size: int) -> None:
    """Raise OptionError for bits or groups that vt does not offer."""
    if bits not in BITS:
        raise OptionError(f"{bits} bits are not offered; choose one of {', '.join(map(str, BITS))}.")
    if group_size not in GROUP_SIZES:
        raise OptionError(
            f"Groups of {group_size} are not offered; choose one of {', '.join(map(str, GROUP_SIZES))}."
        )


def _is_matrix(info: TensorInfo, group_size: int) -> bool:
    whole = len(info.shape) == 2 and info.shape[1] > 0 and info.shape[1] % group_size == 0
    return whole and info.name.endswith(".weight") and info.dtype in FLOAT_DTYPES


def _pieces(info: TensorInfo, module: str, how: Quantization) -> Iterator[_Piece]:
    rows, columns = info.shape
    words, groups = how.words_per_row(columns), how.groups_per_row(columns)
    yield _Piece(TensorInfo(info.name, "uint32", (rows, words)), info, "weight", how)
    for kind in ("scales", "biases"):
        yield _Piece(TensorInfo(f"{module}.{kind}", how.dtype, (rows, groups)), info, kind, how)
