"""A GGUF file's tensors in Hugging Face names and conventions, dequantized a chunk of rows at a time.

Three conventions differ. Names. Llama's query and key rows, which GGUF stores with the two halves of each
head interleaved. Gemma's norm weights, which GGUF stores with the one added that Gemma's norm adds itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converters.gguf_file import GGUFFile, GGUFTensor
from converters.source import CHUNK_BYTES
from vt_core.errors import ModelError
from vt_core.files.dtypes import from_float32

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2 = {
    **_ATTENTION,
    **_MLP,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_INTERLEAVED = ("attn_q", "attn_k")

#: Tensors whose values go into config.json.
ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_RECOMPUTED = re.compile(r"blk\.\d+\.(attn_rot_embd|rope_freqs)\.weight")


@dataclass(frozen=True)
class Layout:
    """How one architecture's GGUF tensors differ from Hugging Face's.

    `layer`: modules of a layer by their GGUF names. `biases`: those that have one; `optional_biases`: groups
    of modules that have one each or none.
    """

    layer: dict[str, str]
    biases: tuple[str, ...] = ()
    optional_biases: tuple[tuple[str, ...], ...] = ()
    interleaved: bool = False
    norm_plus_one: bool = False


_LLAMA_LAYOUT = Layout(_LLAMA, optional_biases=(tuple(_ATTENTION), tuple(_MLP)), interleaved=True)

#: The architectures that can be converted, by their GGUF name.
LAYOUTS = {
    "llama": _LLAMA_LAYOUT,
    "smollm3": _LLAMA_LAYOUT,
    "qwen2": Layout(_LLAMA, biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": Layout({**_LLAMA, **_QK_NORMS}, optional_biases=(tuple(_ATTENTION),)),
    "gemma": Layout(_LLAMA, norm_plus_one=True),
    "gemma2": Layout(_GEMMA2, norm_plus_one=True),
    "gemma3": Layout({**_GEMMA2, **_QK_NORMS}, norm_plus_one=True),
    "phi3": Layout(_PHI3),
}


@dataclass(frozen=True)
class Plan:
    """How to read one tensor. `head_rows`: rows of an attention head whose halves are interleaved, else 0."""

    name: str
    tensor: GGUFTensor
    head_rows: int
    subtract_one: bool


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


def plan_tensors(file: GGUFFile, layout: Layout, layers: int, head_dim: int) -> dict[str, Plan]:
    """Hugging Face name -> plan, in the order of the file.

    Raises:
        ModelError: a tensor is missing, or unknown (leaving it out would give another model).
    """
    names = _expected_names(file, layout, layers)
    tensors = [
        tensor
        for tensor in file.tensors.values()
        if tensor.name not in ROPE_TENSORS and not _RECOMPUTED.fullmatch(tensor.name)
    ]
    missing = next((name for name in names if name not in file.tensors), None)
    if missing is not None:
        raise ModelError(f"{file.path} lacks the tensor {missing}: the file is incomplete.")
    plans = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.name not in names:
            raise ModelError(
                f"{file.path} holds the tensor {tensor.name}, which its architecture should not have."
            )
        plans[names[tensor.name]] = _plan(file, layout, tensor, names[tensor.name], head_dim)
    return plans


def _expected_names(file: GGUFFile, layout: Layout, layers: int) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every tensor that the model has."""
    if layers > len(file.tensors):
        raise ModelError(
            f"{file.path} is incomplete: it claims {layers} layers and has {len(file.tensors)} tensors."
        )
    names = {"token_embd.weight": EMBEDDING, "output_norm.weight": NORM}
    if "output.weight" in file.tensors:
        names["output.weight"] = HEAD
    biases = set(layout.biases)
    for group in layout.optional_biases:
        if f"blk.0.{group[0]}.bias" in file.tensors:
            biases.update(group)
    for layer in range(layers):
        for module, name in layout.layer.items():
            for kind in ("weight", "bias") if module in biases else ("weight",):
                names[f"blk.{layer}.{module}.{kind}"] = f"model.layers.{layer}.{name}.{kind}"
    return names


def _plan(file: GGUFFile, layout: Layout, tensor: GGUFTensor, name: str, head_dim: int) -> Plan:
    if len(tensor.shape) > 2:
        raise ModelError(f"{file.path}: {tensor.name} has {len(tensor.shape)} dimensions, more than two.")
    module = tensor.name.split(".")[-2]
    head_rows = head_dim if layout.interleaved and module in _INTERLEAVED else 0
    if head_rows and tensor.shape[0] % head_rows:
        raise ModelError(
            f"{file.path}: the {tensor.shape[0]} rows of {tensor.name} are not whole heads of {head_rows}."
        )
    return Plan(name, tensor, head_rows, layout.norm_plus_one and name.endswith("norm.weight"))


def read_chunks(file: GGUFFile, plan: Plan, dtype: str) -> Iterator[np.ndarray]:
    """The tensor's rows, in order, as the storage dtype `dtype` (bfloat16 as uint16).

    At most CHUNK_BYTES each, but no less than one row or one attention head.

    Raises:
        ModelError: the file is truncated or a value is not finite in `dtype`.
    """
    tensor = plan.tensor
    # A vector is one row, whatever its length: norms and biases are short.
    rows = tensor.nbytes // tensor.row_bytes
    step = max(1, CHUNK_BYTES // np.dtype(np.float32).itemsize // tensor.shape[-1])
    if plan.head_rows:
        step = max(1, step // plan.head_rows) * plan.head_rows
    for start in range(0, rows, step):
        count = min(step, rows - start)
        data = file.read(tensor.offset + start * tensor.row_bytes, count * tensor.row_bytes)
        values = _dequantize(data, tensor).reshape(-1, *tensor.shape[1:])
        if not np.isfinite(values).all():
            raise ModelError(
                f"{file.path} is damaged: {tensor.name} holds values that are not finite numbers."
            )
        if plan.head_rows:
            values = separate_halves(values, plan.head_rows)
        if plan.subtract_one:
            values = values - np.float32(1)
        chunk = from_float32(values, dtype)
        if dtype == "float16" and not np.isfinite(chunk).all():
            raise ModelError(
                f"{file.path}: {tensor.name} has values too large for float16; "
                "convert to bfloat16 or float32 (--dtype)."
            )
        yield chunk


def separate_halves(values: np.ndarray, head_rows: int) -> np.ndarray:
    """Rows of whole heads out of GGUF's order (0, d/2, 1, d/2 + 1, …) into Hugging Face's (0, 1, 2, …).

    `values` is [heads * head_rows, …]; so is the result.
    """
    heads = values.reshape(-1, head_rows // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def _dequantize(data: bytes, tensor: GGUFTensor) -> np.ndarray:
    """[rows, columns] float32."""
    from gguf.quants import GGMLQuantizationType, dequantize

    rows = np.frombuffer(data, np.uint8).reshape(-1, tensor.row_bytes)
    with np.errstate(all="ignore"):  # from damaged scales; the caller checks the result
        return dequantize(rows, GGMLQuantizationType(tensor.type))
