"""Tiny models whose layers are packed as GPTQ, AWQ and compressed-tensors do, beside what they stand for.

Four bits, groups of 32, embedding and head in floats. All values are float16 without rounding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.tiny import write_model

GROUP = 32
#: In which order AWQ puts eight numbers into a word, the lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = dict[str, np.ndarray]


def write_carried(root: Path, method: str) -> tuple[Path, Path]:
    """A packed model's directory, and one of the floats that it stands for."""
    floats, packed = root / "floats", root / method
    write_model(floats, "llama-wide", "float16")
    shutil.copytree(floats, packed)
    carried, values = {}, {}
    for name, tensor in load_file(floats / "model.safetensors").items():
        carried[name] = values[name] = tensor
        if "_proj." in name:
            del carried[name]
            scales, zeros, numbers = _rounded(tensor, symmetric=method == "compressed-tensors")
            parts = PACK[method](numbers, zeros, scales)
            carried |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
            spread = (np.repeat(part.astype(np.float32), GROUP, axis=1) for part in (zeros, scales))
            values[name] = ((numbers - next(spread)) * next(spread)).astype(np.float16)
    save_file(values, floats / "model.safetensors", {"format": "pt"})
    save_file(
        {name: np.ascontiguousarray(part) for name, part in carried.items()},
        packed / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": SETTINGS[method]}))
    return packed, floats


def _rounded(weight: np.ndarray, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales (float16) and zeros of the groups, and whole numbers from 0 to 15, all ``[rows, …]``."""
    groups = weight.astype(np.float32).reshape(len(weight), -1, GROUP)
    least, most = groups.min(axis=-1), groups.max(axis=-1)
    span = 2 * np.maximum(-least, most) if symmetric else most - least
    # Of few digits, so that products with zeros and numbers, of four bits, are exact.
    scales = ((span / 15).astype(np.float16).view(np.uint16) & 0xFFF0).view(np.float16)
    wide = scales.astype(np.float32)
    zeros = np.full(scales.shape, 8) if symmetric else np.clip(np.round(-least / wide), 0, 15).astype(int)
    numbers = np.clip(np.round(groups / wide[..., None]) + zeros[..., None], 0, 15).astype(int)
    return scales, zeros, numbers.reshape(weight.shape)


def _words(numbers: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Numbers of four bits, eight neighbours in the last axis to an int32."""
    eights = numbers.reshape(*numbers.shape[:-1], -1, 8)[..., order].astype(np.uint32)
    return np.bitwise_or.reduce(eights << (4 * np.arange(8, dtype=np.uint32)), axis=-1).view(np.int32)


def _gptq(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Parts:
    return {
        "qweight": _words(numbers).T,
        "qzeros": _words(zeros.T - 1),
        "scales": scales.T,
        "g_idx": (np.arange(numbers.shape[1]) // GROUP).astype(np.int32),
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


PACK: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Parts]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}
SETTINGS: dict[str, dict] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
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
