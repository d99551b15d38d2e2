"""Prequantized weights in the layout of mlx-lm: NAME.weight, NAME.scales, NAME.biases.

config.json says how under "quantization": bits and group size of all layers, and of single ones by NAME. The
tensors of the body are copied as they are. The tables' go into the store, where a row holds all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.source import Source, TensorInfo
from vt_core.errors import ModelError
from vt_core.files.quantization import WORD_BITS, Quantization

if TYPE_CHECKING:
    import numpy as np

#: Layouts of quantized layers, as config.json calls them, whose tensors a conversion copies unchanged.
CARRIED = ("gptq", "awq", "compressed-tensors", "bitnet")
#: What configurations call the width of the embedding.
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass(frozen=True)
class Packed:
    """A quantized matrix `[rows, values]`: its three tensors, and how they are packed."""

    words: TensorInfo
    scales: TensorInfo
    biases: TensorInfo
    how: Quantization

    @property
    def values(self) -> TensorInfo:
        """The tensor of floats that these three stand for."""
        return TensorInfo(self.words.name, self.how.dtype, (self.words.shape[0], self._columns))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(info.name for info in (self.words, self.scales, self.biases))

    @property
    def _columns(self) -> int:
        return self.scales.shape[1] * self.how.group_size


def refuse_foreign_quantization(path: Path, config: dict[str, Any]) -> None:
    """Raise ModelError for weights that are quantized in a format that neither backend reads.

    Of a model in mlx-lm's layout, only the tables must be in a format that vt reads: see `find_packed`. Of
    one in a layout of CARRIED, whose tables are floats, the layers are a matter of the backend.
    """
    settings = config.get("quantization")
    if settings:
        if not isinstance(settings, dict) or not {"bits", "group_size"} <= settings.keys():
            raise ModelError(
                f"{path} holds a quantized model (quantization in config.json), and not in mlx-lm's layout, "
                "which gives bits and group_size. Use the original weights, or a GGUF file."
            )
    elif config.get("quantization_config") and prequantized_method(config) is None:
        raise ModelError(
            f"{path} holds a quantized model (quantization_config in config.json) in none of the layouts "
            f"{', '.join(CARRIED)}, and vt reads no other. Use the original weights, a GGUF file, or weights "
            "in MLX's affine format."
        )


def prequantized_method(config: dict[str, Any]) -> str | None:
    """How the layers of a model are quantized, where that is one of CARRIED."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method if method in CARRIED and not config.get("quantization") else None


def quantized_method(config: dict[str, Any]) -> str | None:
    """How the weights of a model are quantized, MLX's format included; None where they are floats."""
    return prequantized_method(config) or ("MLX's format" if config.get("quantization") else None)


def find_packed(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], weight: str, columns: int | None = None
) -> Packed | None:
    """The quantized matrix whose words are the tensor `weight`; None where that holds floats.

    `columns`: how many values a row holds, where that is not the width of the embedding.

    Raises:
        ModelError: the format is not MLX's affine one, or the tensors do not fit it.
    """
    module = weight.removesuffix(".weight")
    words, scales = tensors[weight], tensors.get(f"{module}.scales")
    if scales is None:
        return None
    biases = tensors.get(f"{module}.biases")
    settings = config.get("quantization")
    settings = settings if isinstance(settings, dict) else {}
    own = settings.get(module)
    # mlx-lm takes a layer's own settings whole: one that names no mode is affine, whatever the others are.
    settings = own if isinstance(own, dict) else settings
    mode = settings.get("mode") or "affine"
    if mode != "affine" or biases is None:
        raise ModelError(
            f"{weight} is quantized in the mode {mode!r}{'' if biases else ', without biases'}; vt reads "
            "vocabulary tables in floats or in MLX's affine format. Convert the original weights."
        )
    two_dimensional = all(len(info.shape) == 2 for info in (words, scales, biases))
    if not two_dimensional or scales.shape != biases.shape or words.shape[0] != scales.shape[0]:
        raise _unfit(weight, "their shapes do not belong together")
    if words.dtype != "uint32" or scales.dtype != biases.dtype:
        raise _unfit(weight, f"they hold {words.dtype}, {scales.dtype} and {biases.dtype}")
    how = _how(settings, words, scales, columns or _hidden(config))
    return Packed(words, scales, biases, how)


def packed_rows(source: Source, packed: Packed, dtype: str) -> Iterator[np.ndarray]:
    """The rows as the store keeps them, uint32 `[n, columns]`, scales and biases as the storage dtype
    `dtype`.
    """
    from vt_core.files.packing import join_rows

    parts = [
        _in_rows(source.chunks(info.name, info.dtype if info is packed.words else dtype), info.shape[1])
        for info in (packed.words, packed.scales, packed.biases)
    ]
    yield from (join_rows(*rows) for rows in _together(parts))


def _hidden(config: dict[str, Any]) -> Any:
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    return next((part[key] for part in parts for key in _HIDDEN if key in part), None)


def _how(settings: dict[str, Any], words: TensorInfo, scales: TensorInfo, values: Any) -> Quantization:
    """`values`: how many a row holds, where the configuration says so."""
    bits, group_size = settings.get("bits", 0), settings.get("group_size", 0)
    groups = scales.shape[1]
    candidates = [(bits, group_size)]
    # Files name the layers that differ, but not all of them do: the shapes decide.
    if isinstance(values, int) and values > 0 and groups > 0:
        candidates.insert(0, (words.shape[1] * WORD_BITS // values, values // groups))
    for candidate in candidates:
        try:
            how = Quantization(*candidate, scales.dtype)
            if how.words_per_row(groups * how.group_size) == words.shape[1]:
                return how
        except ModelError:
            continue
    raise _unfit(words.name, f"{bits} bits in groups of {group_size} give rows of another length")


def _unfit(weight: str, reason: str) -> ModelError:
    module = weight.removesuffix(".weight")
    return ModelError(
        f"{weight}, {module}.scales and {module}.biases are not a matrix in MLX's affine format: {reason}."
    )


def _in_rows(chunks: Iterator[np.ndarray], columns: int) -> Iterator[np.ndarray]:
    return (chunk.reshape(-1, columns) for chunk in chunks)


def _together(parts: list[Iterator[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Arrays of as many rows from each part, whatever chunks the parts come in."""
    try:
        rest = [next(part) for part in parts]
        while True:
            count = min(map(len, rest))
            yield [rows[:count] for rows in rest]
            rest = [
                rows[count:] if len(rows) > count else next(part)
                for rows, part in zip(rest, parts, strict=True)
            ]
    except StopIteration:
        return
