"""How to read one tensor of a model from a GGUF file: which rows, and what to do to their values.

A plan begins as the rows of the file's tensors as they are. Edits undo what llama.cpp's converter did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converters.gguf_file import GGUFTensor

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a tensor; those of a tensor with more than two dimensions are counted through."""

    tensor: GGUFTensor
    start: int
    count: int


@dataclass(frozen=True)
class Plan:
    """How to read one tensor.

    `name` and `shape`: as in Hugging Face's files. `rows`: where its rows are, in order. `unit`: so many rows
    must be read together. `changes`: what to do to the values of some rows, `[n, *shape[1:]]`.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    unit: int = 1
    changes: tuple[Change, ...] = ()

    @property
    def tensor(self) -> GGUFTensor:
        """The tensor of the file, the first of several."""
        return self.rows[0].tensor

    def then(self, change: Change) -> Plan:
        return replace(self, changes=(*self.changes, change))


#: Makes one plan of another. Raises ValueError with a sentence if the shape does not fit.
Edit = Callable[[Plan], Plan]


def begin(name: str, tensors: Sequence[GGUFTensor]) -> Plan:
    """The rows of one tensor, or the rows of several, matrix after matrix.

    Raises:
        ValueError: several tensors differ in their shapes.
    """
    first = tensors[0]
    if any(tensor.shape != first.shape for tensor in tensors):
        raise ValueError(f"{' and '.join(tensor.name for tensor in tensors)} have different shapes.")
    if len(first.shape) == 1:
        return Plan(name, (first.shape[0] * len(tensors),), tuple(Rows(part, 0, 1) for part in tensors))
    height = first.shape[-2] if len(tensors) > 1 else math.prod(first.shape[:-1])
    starts = range(0, math.prod(first.shape[:-1]), height)
    rows = tuple(Rows(tensor, start, height) for start in starts for tensor in tensors)
    return Plan(name, (*first.shape[:-2], first.shape[-2] * len(tensors), first.shape[-1]), rows)


def halves(width: int) -> Edit:
    """Query or key rows whose heads have their two halves interleaved."""

    def edit(plan: Plan) -> Plan:
        if plan.shape[0] % width:
            raise ValueError(
                f"the {plan.shape[0]} rows of {plan.tensor.name} are not whole heads of {width}."
            )
        return replace(plan, unit=width).then(lambda values: separate_halves(values, width))

    return edit


def separate_halves(values: np.ndarray, head_rows: int) -> np.ndarray:
    """Rows of whole heads out of GGUF's order (0, d/2, 1, d/2 + 1, …) into Hugging Face's (0, 1, 2, …).

    `values` is [heads * head_rows, …]; so is the result.
    """
    heads = values.reshape(-1, head_rows // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def less_one(plan: Plan) -> Plan:
    """A norm that has the one added which the model adds itself."""
    return plan.then(lambda values: values - np.float32(1))


def log_of_negative(plan: Plan) -> Plan:
    """The logarithm of decay rates, which the file has as negative rates."""

    def change(values: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # of damaged values; the reader checks the result
            return np.log(-values)

    return plan.then(change)


def first_rows(count: int) -> Edit:
    """A matrix without the padding after its first rows."""

    def edit(plan: Plan) -> Plan:
        return replace(plan, shape=(count, *plan.shape[1:]), rows=(Rows(plan.tensor, 0, count),))

    return edit


def flat(plan: Plan) -> Plan:
    """A vector that the file has as a matrix."""
    return replace(plan, shape=(math.prod(plan.shape),))


def convolution(plan: Plan) -> Plan:
    """A convolution of each channel alone, `[channels, 1, width]`."""
    if len(plan.shape) != 2:
        raise ValueError(f"{plan.tensor.name} has {len(plan.shape)} dimensions, not two.")
    return replace(plan, shape=(plan.shape[0], 1, plan.shape[1]))


def matrices(plan: Plan) -> Plan:
    """A matrix for each expert."""
    if len(plan.shape) != 3:
        raise ValueError(f"{plan.tensor.name} has {len(plan.shape)} dimensions, not three.")
    return plan


def matrix(index: int) -> Edit:
    """One of the matrices that the file has stacked."""

    def edit(plan: Plan) -> Plan:
        if len(plan.shape) != 3 or plan.shape[0] <= index:
            raise ValueError(f"{plan.tensor.name} has the shape {list(plan.shape)}, without matrix {index}.")
        height = plan.shape[1]
        return replace(plan, shape=plan.shape[1:], rows=(Rows(plan.tensor, index * height, height),))

    return edit


def rows_by_key(keys: int, values: int, width: int, first: int = 0) -> Edit:
    """Rows of value heads, `width` each, `values` for each of the `keys`.

    The file has the first value head of every key, then the second ones; the model wants all value heads of a
    key together. The rows before `first` stay.
    """

    def edit(plan: Plan) -> Plan:
        _check_size(plan, plan.shape[0], first + keys * values * width)
        heads = [value * keys + key for key in range(keys) for value in range(values)]
        moved = tuple(Rows(plan.tensor, first + head * width, width) for head in heads)
        return replace(plan, rows=(Rows(plan.tensor, 0, first), *moved) if first else moved)

    return _unless_alone(edit, values)


def columns_by_key(keys: int, values: int, width: int) -> Edit:
    """As `rows_by_key`, of columns, or of the elements of a vector."""

    def edit(plan: Plan) -> Plan:
        _check_size(plan, plan.shape[-1], keys * values * width)
        order = np.arange(keys * values * width).reshape(values, keys, width).swapaxes(0, 1).ravel()
        return plan.then(lambda rows: np.take(rows, order, axis=-1))

    return _unless_alone(edit, values)


def _unless_alone(edit: Edit, values: int) -> Edit:
    """The edit, or none where each key has one value head: then both orders are the same."""
    return edit if values > 1 else lambda plan: plan


def _check_size(plan: Plan, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(
            f"{plan.tensor.name} has the shape {list(plan.shape)}, which {expected} does not fit."
        )
