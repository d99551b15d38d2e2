"""Tiny models whose layers are packed as GPTQ, AWQ and compressed-tensors do, and the floats that
they represent.

Groups of 32, embedding and head in floats. All values are float16 without rounding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.tiny import write_model

GROUP = 32
#: Order in which AWQ packs eight numbers into a word, lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = dict[str, np.ndarray]


def write_prequantized(
    root: Path, kind: str, model: str = "llama-wide", **changes: object
) -> tuple[Path, Path]:
    """A packed model's directory, and one of the floats that it represents; ``kind``: one of SETTINGS."""
    floats, packed = root / "floats", root / kind
    settings = SETTINGS[kind]
    method, bits, shuffled = settings["quant_method"], settings.get("bits", 4), settings.get("desc_act")
    symmetric = method == "compressed-tensors" or bits == 8
    write_model(floats, model, "float16", **changes)
    shutil.copytree(floats, packed)
    stored, values = {}, {}
    for name, tensor in load_file(floats / "model.safetensors").items():
        stored[name] = values[name] = tensor
        if "_proj." in name and "vision" not in name:
            del stored[name]
            # The columns in the order in which the groups store them.
            order = np.arange(tensor.shape[1])
            if shuffled:
                np.random.default_rng(0).shuffle(order)
            groups = np.argsort(order) // GROUP
            scales, zeros, numbers = _rounded(tensor[:, order], bits, symmetric=symmetric)
            numbers = numbers[:, np.argsort(order)]
            if method == "gptq":
                one_less = settings.get("checkpoint_format") != "gptq_v2"
                parts = _gptq(numbers, zeros - one_less, scales, groups, bits)
            else:
                parts = {"awq": _awq, "compressed-tensors": _compressed}[method](numbers, zeros, scales)
            stored |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
            wide = scales.astype(np.float32)
            values[name] = ((numbers - zeros[:, groups]) * wide[:, groups]).astype(np.float16)
    for directory, tensors in ((floats, values), (packed, stored)):
        ordered = {name: np.ascontiguousarray(part) for name, part in tensors.items()}
        save_file(ordered, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return packed, floats


def _rounded(weight: np.ndarray, bits: int, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales (float16) and zeros of the groups, and whole numbers from 0, all ``[rows, …]``."""
    last = (1 << bits) - 1
    groups = weight.astype(np.float32).reshape(len(weight), -1, GROUP)
    least, most = groups.min(axis=-1), groups.max(axis=-1)
    span = 2 * np.maximum(-least, most) if symmetric else most - least
    # With few digits, so that products with zeros and numbers are exact.
    digits = 0xFF00 if bits == 8 else 0xFFF0
    scales = ((span / last).astype(np.float16).view(np.uint16) & digits).view(np.float16)
    wide = scales.astype(np.float32)
    middle = np.full(scales.shape, 1 << bits - 1)
    # From 1: a GPTQ file stores one less.
    zeros = middle if symmetric else np.clip(np.round(-least / wide), 1, last).astype(int)
    numbers = np.clip(np.round(groups / wide[..., None]) + zeros[..., None], 0, last).astype(int)
    return scales, zeros, numbers.reshape(weight.shape)


def _words(numbers: np.ndarray, order: tuple[int, ...] = tuple(range(8)), bits: int = 4) -> np.ndarray:
    """Pack numbers of ``bits`` bits along the last axis into int32 words."""
    count = 32 // bits
    parts = numbers.reshape(*numbers.shape[:-1], -1, count)[..., order[:count]].astype(np.uint32)
    return np.bitwise_or.reduce(parts << (bits * np.arange(count, dtype=np.uint32)), axis=-1).view(np.int32)


def _gptq(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray, bits: int) -> Parts:
    return {
        "qweight": _words(numbers, bits=bits).T,
        "qzeros": _words(zeros.T, bits=bits),
        "scales": scales.T,
        "g_idx": groups.astype(np.int32),
    }


def _awq(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Parts:
    return {
        "qweight": _words(numbers.T, _AWQ_ORDER),
        "qzeros": _words(zeros.T, _AWQ_ORDER),
        "scales": scales.T,
    }


def _compressed(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Parts:
    return {
        "weight_packed": _words(numbers),
        "weight_scale": scales,
        "weight_shape": np.array(numbers.shape, np.int64),
    }


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
SETTINGS: dict[str, dict] = {
    "gptq": _GPTQ,
    "gptq-v2": _GPTQ | {"checkpoint_format": "gptq_v2"},
    "gptq-ordered-by-activation": _GPTQ | {"desc_act": True},
    "gptq-8bit": _GPTQ | {"bits": 8, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
    },
}
