"""Quantizing a model for PyTorch while it is converted: layers of 8-bit or 4-bit integers, int8 head rows.

The tables stay floats here; a conversion writes the head's rows besides, as `head_rows` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters.packed import quantized_method
from converters.source import Piece, ReplacedMatrices, Source, TensorInfo
from converters.tables import find_tables
from vt_core.errors import ModelError, OptionError
from vt_core.files import integers
from vt_core.files.architectures import TEXT_PREFIXES, architecture_of
from vt_core.files.dtypes import FLOATS

if TYPE_CHECKING:
    import numpy as np

#: Values that are quantized at once; intermediate results fit the processor's cache.
_PIECE_VALUES = 1 << 19
#: Matrices that are no linear layers: tables of positions, and routers and experts, which transformers keeps
#: in modules of their own.
_OTHERS = re.compile(r"(^|\.)(wpe|\w*embed\w*|gate|router|\w*gating\w*|experts)(\.|$)")


@dataclass(frozen=True)
class _Piece(Piece):
    group: int | None  #: columns that share a scale; None: one scale per row, and 8 bits


class IntegerSource(ReplacedMatrices[_Piece]):
    """Another source, its linear layers as integers."""

    def __init__(self, source: Source, mode: str) -> None:
        """`mode`: one of :data:`vt_core.files.integers.MODES`.

        Raises:
            ModelError: the model is quantized already, or has no linear layers.
            OptionError: an unknown mode.
        """
        if mode not in integers.MODES:
            raise OptionError(f"The quantization {mode!r} is not one of {', '.join(integers.MODES)}.")
        refuse_quantized(source)
        super().__init__(source)
        infos = source.tensors()
        layers = _layers(source, infos)
        if not layers:
            raise ModelError(
                f"{source.name} ({source.config.get('model_type')}) has no linear layers that vt could "
                "quantize; leave --quantize out."
            )
        for info in infos:
            if info.name in layers:
                self._replace(_pieces(info, mode))
            else:
                self._tensors.append(info)

    def is_part(self, name: str) -> bool:
        """Whether a tensor is part of a quantized layer, with a dtype of its own."""
        return name in self._pieces

    def _made(self, piece: _Piece, dtype: str) -> Iterator[np.ndarray]:
        from vt_core.files.dtypes import from_float32

        for values in _values(self._source, piece.matrix, piece.matrix.dtype):
            if piece.group is None:
                scales = integers.row_scales(values)
                parts = {"scales": scales}
            else:
                scales, zeros = integers.group_scales(values, piece.group)
                parts = {"scales": scales, "zeros": zeros}
            if piece.kind in parts:
                yield from_float32(parts[piece.kind], integers.SCALES)
            elif piece.group is None:
                yield integers.quantize_rows(values, scales)
            else:
                yield integers.quantize_groups(values, scales, zeros)


def head_rows(source: Source, table: TensorInfo, dtype: str) -> Iterator[np.ndarray]:
    """The rows of a head, whose values are rounded to a storage dtype first, as int8 `[n, columns]`."""
    for values in _values(source, table, dtype):
        yield integers.quantize_rows(values, integers.row_scales(values, "float32"))


def head_scales(source: Source, table: TensorInfo, dtype: str) -> Iterator[np.ndarray]:
    """The scales of these rows, float32 `[n, 1]`."""
    for values in _values(source, table, dtype):
        yield integers.row_scales(values, "float32")[:, None]


def refuse_quantized(source: Source) -> None:
    """Raise OptionError for a source whose weights are quantized."""
    if method := quantized_method(source.config):
        raise OptionError(
            f"{source.name} is quantized already ({method}) and stays as it is; leave --quantize out."
        )


def _layers(source: Source, infos: list[TensorInfo]) -> set[str]:
    """Names of the linear layers' matrices."""
    if architecture_of(source.config).transposed_layers:
        return set()
    tables = find_tables(source.config, infos).names
    names = {
        info.name
        for info in infos
        if len(info.shape) == 2
        and 0 not in info.shape
        and info.dtype in FLOATS
        and info.name.endswith(".weight")
        and info.name not in tables
        and not _OTHERS.search(info.name.removesuffix(".weight"))
    }
    # Of a model that also takes images, only the language model is run.
    return {name for name in names if name.startswith(TEXT_PREFIXES)} or names


def _pieces(info: TensorInfo, mode: str) -> Iterator[_Piece]:
    rows, columns = info.shape
    module = info.name.removesuffix("weight")
    group = integers.group_of(rows, columns) if mode == "int4" else None
    if group is None:
        yield _Piece(TensorInfo(f"{module}numbers", "int8", (rows, columns)), info, "numbers", None)
        yield _Piece(TensorInfo(f"{module}scales", integers.SCALES, (rows,)), info, "scales", None)
        return
    yield _Piece(TensorInfo(f"{module}numbers", "uint8", (rows, columns // 2)), info, "numbers", group)
    for kind in ("scales", "zeros"):
        shape = (rows, columns // group)
        yield _Piece(TensorInfo(f"{module}{kind}", integers.SCALES, shape), info, kind, group)


def _values(source: Source, matrix: TensorInfo, dtype: str) -> Iterator[np.ndarray]:
    """A matrix in float32, a few rows at a time."""
    from vt_core.files.dtypes import to_float32

    columns = matrix.shape[1]
    step = max(1, _PIECE_VALUES // columns)
    for chunk in source.chunks(matrix.name, dtype):
        rows = chunk.reshape(-1, columns)
        for start in range(0, len(rows), step):
            yield to_float32(rows[start : start + step], dtype)
