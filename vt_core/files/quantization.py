"""MLX's affine format, as arithmetic: how a row of values is packed.

A row is cut into groups of `group_size` values. A value is `scale * q + bias`: `scale` and `bias` belong to
its group, `q` is a whole number of `bits` bits. The numbers of a row lie side by side in one stream of bits,
lowest bit first, in 32-bit words. The store keeps a row as its words, then its scales, then its biases, all
counted in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from vt_core.errors import ModelError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
WORD_BITS = 32
_FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class Quantization:
    """How a matrix is packed. `dtype` is the float type of scales and biases.

    Raises ModelError for values that the format does not have.
    """

    bits: int
    group_size: int
    dtype: str
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode != "affine":
            raise ModelError(f"the quantization {self.mode!r} is not known; vt reads MLX's affine format.")
        if self.bits not in BITS or self.group_size not in GROUP_SIZES or self.dtype not in _FLOAT_BITS:
            raise ModelError(
                f"{self.bits!r} bits in groups of {self.group_size!r} with scales in {self.dtype!r} is not "
                f"MLX's affine format, which has {_listed(BITS)} bits, groups of {_listed(GROUP_SIZES)}, and "
                f"scales in {', '.join(_FLOAT_BITS)}."
            )

    def words(self, values: int) -> int:
        """32-bit words of `values` packed numbers. Raises ModelError where groups do not fill the row."""
        return self.groups(values) * self.group_size * self.bits // WORD_BITS

    def groups(self, values: int) -> int:
        """Groups of a row. Raises ModelError where they do not fill it."""
        if values < 1 or values % self.group_size:
            raise ModelError(f"a row of {values} values cannot be cut into groups of {self.group_size}.")
        return values // self.group_size

    def columns(self, values: int) -> int:
        """32-bit words of a stored row: numbers, scales and biases."""
        return self.words(values) + 2 * self.groups(values) * _FLOAT_BITS[self.dtype] // WORD_BITS

    def values(self, columns: int) -> int:
        """Values of a stored row of `columns` words."""
        return columns // self.columns(self.group_size) * self.group_size


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
