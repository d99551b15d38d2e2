"""MLX's affine quantization: sizes of packed rows.

A row is divided into groups of `group_size` values. A value is `scale * q + bias`, where `scale` and `bias`
belong to its group and `q` is an integer of `bits` bits. The integers of a row are packed without gaps into
32-bit words, lowest bit first. A stored row is its words, then its scales, then its biases; its size is
counted in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from vt_core.errors import ModelError, shorten

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
WORD_BITS = 32
_FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class Quantization:
    """How a matrix is packed. Raises ModelError for values that the format does not have."""

    bits: int  #: per value
    group_size: int  #: values that share a scale and a bias
    dtype: str  #: float type of scales and biases
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode != "affine":
            raise ModelError(
                f"the quantization {shorten(self.mode)} is unknown; vt reads MLX's affine format."
            )
        if self.bits not in BITS or self.group_size not in GROUP_SIZES or self.dtype not in _FLOAT_BITS:
            raise ModelError(
                f"{self.bits!r} bits in groups of {self.group_size!r} with scales in {self.dtype!r} is not "
                f"MLX's affine format, which has {_listed(BITS)} bits, groups of {_listed(GROUP_SIZES)}, and "
                f"scales in {', '.join(_FLOAT_BITS)}."
            )

    def words_per_row(self, values: int) -> int:
        """32-bit words of `values` packed integers. Raises ModelError if groups do not fill the row."""
        return self.groups_per_row(values) * self.group_size * self.bits // WORD_BITS

    def groups_per_row(self, values: int) -> int:
        """Groups of a row of `values`. Raises ModelError if they do not fill it."""
        if values < 1 or values % self.group_size:
            raise ModelError(f"a row of {values} values cannot be divided into groups of {self.group_size}.")
        return values // self.group_size

    def stored_columns(self, values: int) -> int:
        """32-bit words of a stored row of `values`: packed integers, scales and biases."""
        return (
            self.words_per_row(values)
            + 2 * self.groups_per_row(values) * _FLOAT_BITS[self.dtype] // WORD_BITS
        )

    def row_values(self, columns: int) -> int:
        """Values of a stored row of `columns` words."""
        return columns // self.stored_columns(self.group_size) * self.group_size


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
