"""Tiny models built by hand: a few kilobytes of random weights in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.converters.gguf_tiny import metadata
from tests.converters.gguf_writer import F32, Tensor, write_gguf

#: Safetensors' code for a numpy dtype; uint16 carries bfloat16.
CODES = {
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "uint32": "U32",
    "int64": "I64",
    "float64": "F64",
    "bool": "BOOL",
}
VOCAB = 40
HIDDEN = 24


def raw_safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        begin = len(data)
        data += tensor.tobytes()
        header[name] = {
            "dtype": CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, len(data)],
        }
    path.write_bytes(raw_safetensors(header, data))


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values: bfloat16 rounded towards zero, as uint16."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokenizer_json() -> str:
    """A byte-level BPE of VOCAB ids: one special token, printable ASCII from "!" on, no merges."""
    vocab = {chr(33 + index): index for index in range(VOCAB - 1)}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": VOCAB - 1,
                    "content": "<|end|>",
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "post_processor": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }
    )


def llama(tied: bool = True, bias: bool = False) -> dict[str, np.ndarray]:
    """Tensors of a one-layer model in bfloat16, norms in float32, and a buffer of integers."""
    tensors = {
        "model.embed_tokens.weight": bfloat16(random(1, VOCAB, HIDDEN)),
        "model.layers.0.mlp.up_proj.weight": bfloat16(random(2, 32, HIDDEN)),
        "model.norm.weight": random(3, HIDDEN),
        "model.positions": np.arange(5),
    }
    if not tied:
        tensors["lm_head.weight"] = bfloat16(random(4, VOCAB, HIDDEN))
    if bias:
        tensors["lm_head.bias"] = bfloat16(random(5, VOCAB))
    return tensors


PER_LAYER_ROWS = 30
#: What config.json says of `with_per_layer`.
PER_LAYER = {
    "model_type": "gemma3n",
    "num_hidden_layers": 1,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": PER_LAYER_ROWS,
}


def with_per_layer() -> dict[str, np.ndarray]:
    """The tensors of `llama` and a table for its layers."""
    rows = bfloat16(random(6, PER_LAYER_ROWS, 16))
    return llama() | {"model.embed_tokens_per_layer.weight": rows}


def config(**changes: Any) -> dict[str, Any]:
    values = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def write_model(
    path: Path, tensors: Mapping[str, np.ndarray] | None = None, *, shards: int = 1, **changes: Any
) -> Path:
    """Write a model directory; `changes` go into config.json (`...` takes a key out)."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = llama() if tensors is None else tensors
    (path / "config.json").write_text(json.dumps(config(**changes)))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCAB - 1}))
    (path / "tokenizer.json").write_text(tokenizer_json())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    if shards == 1:
        save(path / "model.safetensors", tensors)
        return path
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::shards]}
        save(path / name, part)
        weight_map.update(dict.fromkeys(part, name))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def write_gguf_model(path: Path, values: dict[str, np.ndarray]) -> Path:
    rows = len(values["token_embd.weight"])
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [chr(ord("a") + index) for index in range(rows)],
        "tokenizer.ggml.merges": [],
    }
    tensors = {name: Tensor.of(value, F32) for name, value in values.items()}
    return Path(write_gguf(path, {**metadata("llama"), **tokenizer}, tensors))
