"""Quantizing a model for PyTorch while it is converted: layers of 8-bit or 4-bit integers, int8 head rows.

The tables stay floats here; a conversion writes the head's rows besides, as `head_rows` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.packed import prequantized_method
from converters.source import Source, TensorInfo
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
class _Piece:
    """One of the tensors that a layer's matrix becomes."""

    info: TensorInfo
    matrix: TensorInfo
    kind: str  #: ``numbers``, ``scales`` or ``zeros``
    group: int | None  #: columns that share a scale; None: one scale per row, and 8 bits


class IntegerSource:
    """Another source, its linear layers as integers. A :class:`converters.source.Source`."""

    def __init__(self, source: Source, mode: str) -> None:
        """`mode`: one of :data:`vt_core.files.integers.MODES`.

        Raises:
            ModelError: the model is quantized already, or has no linear layers.
            OptionError: an unknown mode.
        """
        if mode not in integers.MODES:
            raise OptionError(f"The quantization {mode!r} is not one of {', '.join(integers.MODES)}.")
        refuse_quantized(source)
        self._source = source
        self.kind, self.name, self.config = source.kind, source.name, source.config
        self.default_dtype, self.generation_config = source.default_dtype, source.generation_config
        infos = source.tensors()
        layers = _layers(source, infos)
        if not layers:
            raise ModelError(
                f"{source.name} ({source.config.get('model_type')}) has no linear layers that vt could "
                "quantize; leave --quantize out."
            )
        self._tensors: list[TensorInfo] = []
        self._pieces: dict[str, _Piece] = {}
        for info in infos:
            if info.name not in layers:
                self._tensors.append(info)
                continue
            for piece in _pieces(info, mode):
                self._tensors.append(piece.info)
                self._pieces[piece.info.name] = piece

    def is_part(self, name: str) -> bool:
        """Whether a tensor is part of a quantized layer, with a dtype of its own."""
        return name in self._pieces

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def tensors(self) -> list[TensorInfo]:
        return self._tensors

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        if name not in self._pieces:
            return self._source.chunks(name, dtype)
        return self._quantized(self._pieces[name])

    def write_tokenizer(self, out: Path) -> str:
        return self._source.write_tokenizer(out)

    def _quantized(self, piece: _Piece) -> Iterator[np.ndarray]:
        """One part of a matrix. Each is made from the whole of it: to keep the others would take memory."""
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
    packed = "MLX's format" if source.config.get("quantization") else None
    method = packed or prequantized_method(source.config)
    if method:
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
