"""A GGUF file's tensors in Hugging Face names and conventions, dequantised a chunk of rows at a time.

Three conventions differ. Names. Llama's query and key rows, which GGUF stores with the two halves of each head
interleaved. Gemma's norm weights, which GGUF stores with the one added that Gemma's norm adds when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converters.gguf_file import GGUFFile, GGUFTensor
from converters.source import CHUNK_BYTES
from vt_core.errors import ModelError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_GLOBAL = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
    "output.bias": "lm_head.bias",
}
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

ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""What these hold goes into config.json."""
_RECOMPUTED = re.compile(r"blk\.\d+\.(attn_rot_embd|rope_freqs|attn\.rope\.freqs)(\.weight)?")
ROTATED = re.compile(r"\.self_attn\.[qk]_proj\.(weight|bias)$")
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Layout:
    """How one architecture's GGUF tensors differ from Hugging Face's: names within a layer, rows, norms."""

    layer: dict[str, str]
    interleaved: bool = False
    norm_plus_one: bool = False


LAYOUTS = {
    "llama": Layout(_LLAMA, interleaved=True),
    "smollm3": Layout(_LLAMA, interleaved=True),
    "qwen2": Layout(_LLAMA),
    "qwen3": Layout({**_LLAMA, **_QK_NORMS}),
    "gemma": Layout(_LLAMA, norm_plus_one=True),
    "gemma2": Layout(_GEMMA2, norm_plus_one=True),
    "gemma3": Layout({**_GEMMA2, **_QK_NORMS}, norm_plus_one=True),
    "phi3": Layout(_PHI3),
}
"""The architectures that can be converted, by their GGUF name."""


@dataclass(frozen=True)
class Plan:
    """One tensor to give out. `head_rows`: rows of an attention head whose halves lie interleaved, 0 where none do."""

    name: str
    tensor: GGUFTensor
    head_rows: int
    subtract_one: bool


def layout_of(file: GGUFFile) -> Layout:
    """Layout of the file's architecture. Raises ModelError, by name, for one that is not known."""
    name = file.metadata.get("general.architecture")
    if name not in LAYOUTS:
        raise ModelError(
            f"{file.path} has the architecture {name!r}; GGUF files of these can be converted: "
            f"{', '.join(sorted(LAYOUTS))}. Try the model's Hugging Face directory."
        )
    return LAYOUTS[name]


def plan_tensors(file: GGUFFile, layout: Layout, layers: int, head_dim: int) -> dict[str, Plan]:
    """Hugging Face name -> plan, in the order of the file.

    Raises ModelError for a tensor that is not understood (leaving one out would give another model) or is missing.
    """
    plans: dict[str, Plan] = {}
    for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.name in ROPE_TENSORS or _RECOMPUTED.fullmatch(tensor.name):
            continue
        name = _hugging_face_name(layout, tensor.name, layers)
        if name is None:
            raise ModelError(f"{file.path} holds the tensor {tensor.name}, which its architecture should not have.")
        if len(tensor.shape) > 2:
            raise ModelError(f"{file.path}: {tensor.name} has {len(tensor.shape)} dimensions, where 1 or 2 are understood.")
        interleaved = layout.interleaved and ROTATED.search(name) is not None
        if interleaved and tensor.shape[0] % head_dim:
            raise ModelError(f"{file.path}: the {tensor.shape[0]} rows of {tensor.name} are no whole heads of {head_dim}.")
        subtract_one = layout.norm_plus_one and name.endswith("norm.weight")
        plans[name] = Plan(name, tensor, head_dim if interleaved else 0, subtract_one)
    _check_complete(file, layout, plans, layers)
    return plans


def _hugging_face_name(layout: Layout, name: str, layers: int) -> str | None:
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in layout.layer or int(match[1]) >= layers:
        return None
    return f"model.layers.{int(match[1])}.{layout.layer[match[2]]}.{match[3]}"


def _check_complete(file: GGUFFile, layout: Layout, plans: dict[str, Plan], layers: int) -> None:
    wanted = [EMBEDDING, "model.norm.weight"]
    wanted += [f"model.layers.{i}.{module}.weight" for i in range(layers) for module in layout.layer.values()]
    missing = [name for name in wanted if name not in plans]
    if missing:
        raise ModelError(
            f"{file.path} lacks {len(missing)} of the model's tensors, the first {missing[0]}: the file is incomplete."
        )


def read_chunks(file: GGUFFile, plan: Plan, dtype: str) -> Iterator[np.ndarray]:
    """The tensor's rows, in order, as the storage dtype `dtype` (bfloat16 as uint16); at most CHUNK_BYTES each.

    Raises ModelError where the file is cut, or a value does not fit `dtype`.
    """
    tensor = plan.tensor
    # A vector is one row of its blocks, whatever its length: norms and biases are short.
    rows = tensor.nbytes // tensor.row_bytes
    step = max(1, CHUNK_BYTES // 4 // tensor.shape[-1])
    if plan.head_rows:
        step = max(1, step // plan.head_rows) * plan.head_rows
    for start in range(0, rows, step):
        count = min(step, rows - start)
        values = _dequantise(file.read(tensor.offset + start * tensor.row_bytes, count * tensor.row_bytes), tensor)
        values = values.reshape(-1, *tensor.shape[1:])
        if plan.head_rows:
            values = separate_halves(values, plan.head_rows)
        if plan.subtract_one:
            values = values - np.float32(1)
        yield _to_storage(file, plan, values, dtype)


def separate_halves(values: np.ndarray, head_rows: int) -> np.ndarray:
    """Rows of whole heads out of GGUF's order (0, d/2, 1, d/2 + 1, …) into Hugging Face's (0, 1, 2, …).

    `values` is [heads * head_rows, …]; so is the result.
    """
    heads = values.reshape(-1, head_rows // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def _dequantise(data: bytes, tensor: GGUFTensor) -> np.ndarray:
    """[rows, columns] float32."""
    from gguf.quants import GGMLQuantizationType, dequantize

    rows = np.frombuffer(data, np.uint8).reshape(-1, tensor.row_bytes)
    return dequantize(rows, GGMLQuantizationType(tensor.type))


def _to_storage(file: GGUFFile, plan: Plan, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return np.ascontiguousarray(values, np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16).view(np.uint16)
    if dtype != "float16":
        raise ModelError(f"{dtype} is no type that weights can be stored in: bfloat16, float16 or float32.")
    try:
        with np.errstate(over="raise"):
            return values.astype(np.float16)
    except FloatingPointError as error:
        raise ModelError(
            f"{file.path}: {plan.name} has values too large for float16; convert with --dtype bfloat16 or float32."
        ) from error
