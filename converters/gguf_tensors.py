"""A GGUF file's tensors in Hugging Face names and conventions, dequantized a chunk of rows at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from converters.gguf_file import GGUFFile
from converters.gguf_layouts import LAYOUTS, Entry, Layout
from converters.gguf_metadata import Hyperparameters
from converters.gguf_plans import Plan, Rows, begin
from converters.source import CHUNK_BYTES
from vt_core.errors import ModelError
from vt_core.files.dtypes import from_float32

#: Tensors whose values go into config.json, and those that the frameworks compute.
_NOT_WEIGHTS = re.compile(
    r"rope_(freqs|factors_long|factors_short)\.weight|blk\.\d+\.(attn_rot_embd|rope_freqs)\.weight"
)


def layout_of(file: GGUFFile) -> Layout:
    """Layout of the file's architecture.

    Raises:
        ModelError: the architecture is unknown.
    """
    name = file.text("general.architecture")
    if name is None or name not in LAYOUTS:
        raise ModelError(
            f"{file.path} has the architecture {name!r}; GGUF files of these can be converted: "
            f"{', '.join(sorted(LAYOUTS))}. Try the model's Hugging Face directory."
        )
    return LAYOUTS[name]


def plan_tensors(file: GGUFFile, layout: Layout, hyper: Hyperparameters) -> dict[str, Plan]:
    """Hugging Face name -> plan, in the order of the file.

    Raises:
        ModelError: a tensor is missing, or unknown (leaving it out would give another model).
    """
    if hyper.layers > len(file.tensors):
        raise ModelError(
            f"{file.path} is incomplete: it claims {hyper.layers} layers and has {len(file.tensors)} tensors."
        )
    entries = layout.entries(hyper)
    for entry in entries:
        missing = next((source for source in entry.sources if source not in file.tensors), None)
        if missing is not None and not entry.optional:
            raise ModelError(f"{file.path} lacks the tensor {missing}: the file is incomplete.")
    known = {source for entry in entries for source in entry.sources}
    for name in file.tensors:
        if name not in known and not _NOT_WEIGHTS.fullmatch(name) and not _guesses_further(name, hyper):
            raise ModelError(f"{file.path} holds the tensor {name}, which its architecture should not have.")
    plans = [_plan(file, entry) for entry in entries if entry.sources[0] in file.tensors]
    return {plan.name: plan for plan in sorted(plans, key=lambda plan: plan.tensor.offset)}


def _guesses_further(name: str, hyper: Hyperparameters) -> bool:
    """Whether a tensor belongs to the layers after the model's, which guess further tokens."""
    layer = re.match(r"blk\.(\d{1,9})\.", name)
    return layer is not None and hyper.layers <= int(layer[1]) < hyper.count("block_count")


def _plan(file: GGUFFile, entry: Entry) -> Plan:
    try:
        plan = begin(entry.name, [file.tensors[source] for source in entry.sources])
        if len(plan.shape) > 2 and not entry.edits:
            raise ValueError(f"{plan.tensor.name} has {len(plan.shape)} dimensions, more than two.")
        for edit in entry.edits:
            plan = edit(plan)
    except ValueError as error:
        raise ModelError(f"{file.path}: {error}") from error
    return plan


def read_chunks(file: GGUFFile, plan: Plan, dtype: str) -> Iterator[np.ndarray]:
    """The tensor's rows, in order, as the storage dtype `dtype` (bfloat16 as uint16).

    At most CHUNK_BYTES each, but no less than one row or one attention head. A tensor with a matrix for each
    expert is given out as rows of these.

    Raises:
        ModelError: the file is truncated or a value is not finite in `dtype`.
    """
    row = plan.shape[1:] if len(plan.shape) < 3 or plan.shape[1] == 1 else plan.shape[-1:]
    for rows in plan.rows:
        for values in _read_rows(file, plan, rows):
            values = values.reshape(-1, *row)
            for change in plan.changes:
                values = change(values)
            if not np.isfinite(values).all():
                raise ModelError(
                    f"{file.path} is damaged: {rows.tensor.name} holds values that are not finite numbers."
                )
            chunk = from_float32(values, dtype)
            if dtype == "float16" and not np.isfinite(chunk).all():
                raise ModelError(
                    f"{file.path}: {rows.tensor.name} has values too large for float16; "
                    "convert to bfloat16 or float32 (--dtype)."
                )
            yield chunk


def _read_rows(file: GGUFFile, plan: Plan, rows: Rows) -> Iterator[np.ndarray]:
    """Dequantized rows, at most CHUNK_BYTES each time but no less than the plan's unit."""
    tensor = rows.tensor
    # A vector is one row, whatever its length: norms and biases are short.
    step = max(1, CHUNK_BYTES // np.dtype(np.float32).itemsize // tensor.shape[-1])
    step = max(1, step // plan.unit) * plan.unit
    for start in range(rows.start, rows.start + rows.count, step):
        yield file.rows(tensor, start, min(step, rows.start + rows.count - start))
