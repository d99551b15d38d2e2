"""Low-rank adapters (LoRA) as PEFT and as mlx-lm save them, read into one form.

A layer with an adapter gives ``layer(x) + scale * B(A(x))``. Layers stay as they are, quantized ones too, and
the low-rank part is computed beside them, in the adapter's float32, as PEFT and mlx-lm do before merging.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import ModelError
from vt_core.files.architectures import EMBEDDING_MODULES, HEAD_MODULES, PER_LAYER_MODULE
from vt_core.files.dtypes import storage_dtype, to_float32
from vt_core.files.json_files import read_object

Floats = npt.NDArray[np.float32]

CONFIG_NAME = "adapter_config.json"
PEFT_NAME = "adapter_model.safetensors"
MLX_NAME = "adapters.safetensors"

_PEFT_PREFIX = "base_model.model."
_PEFT_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")
_MLX_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ab])")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TABLES = frozenset({*EMBEDDING_MODULES, *HEAD_MODULES, PER_LAYER_MODULE})
#: Settings of PEFT that change what an adapter computes, and the values under which they do not.
_PEFT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
}
#: Ways to begin a training that also change the weights of the model.
_CHANGES_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """The adapter of one layer: ``a [rank, inputs]`` and ``b [outputs, rank]``, float32."""

    module: str  #: path of the layer within the model
    a: Floats
    b: Floats
    scale: float

    def check(self, outputs: int, inputs: int) -> None:
        """Raises ModelError unless the layer has these sizes."""
        if (len(self.b), self.a.shape[1]) != (outputs, inputs):
            raise ModelError(
                f"the adapter of {self.module} is for a layer of {self.a.shape[1]} inputs and {len(self.b)} "
                f"outputs, and this model's has {inputs} and {outputs}; use the adapter's own base model"
            )

    def missing(self) -> ModelError:
        """The error of a model that has no such layer."""
        return ModelError(
            f"the adapter changes {self.module}, which is no linear layer of this model that vt can adapt; "
            "use the adapter's own base model"
        )


def read_adapter(directory: str | Path) -> list[LowRank]:
    """The low-rank layers of an adapter's directory.

    Raises:
        ModelError: there is none, it cannot be read, or it is of a kind that vt does not apply.
    """
    path = Path(directory).expanduser()
    if not (path / CONFIG_NAME).is_file():
        raise ModelError(f"{path} is no adapter: it holds no {CONFIG_NAME}")
    config = read_object(path / CONFIG_NAME, "adapter configuration", ModelError, strict=False)
    if (path / PEFT_NAME).is_file():
        return _read_peft(path, config)
    if (path / MLX_NAME).is_file():
        return _read_mlx(path, config)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise ModelError(
            f"{path} holds a pickled adapter only, and vt reads safetensors; save it with PEFT's "
            "save_pretrained(DIR, safe_serialization=True)"
        )
    raise ModelError(f"{path} holds neither {PEFT_NAME} nor {MLX_NAME}")


def _read_peft(path: Path, config: Mapping[str, Any]) -> list[LowRank]:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path} is an adapter of the kind {kind}; vt applies LORA")
    for name, neutral in _PEFT_NEUTRAL.items():
        if config.get(name) not in neutral:
            raise ModelError(
                f"{path}: {name} is {config[name]!r}, which vt does not apply; merge the adapter into its "
                "model with PEFT's merge_and_unload, and convert that"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_MODEL):
        raise ModelError(
            f"{path}: init_lora_weights is {start!r}, which changes the model's own weights as well; merge "
            "the adapter with PEFT's merge_and_unload, and convert that"
        )

    def scale(module: str, rank: int) -> float:
        said = _by_pattern(config, "rank_pattern", module, config.get("r"))
        if said != rank:
            raise ModelError(f"{path}: {CONFIG_NAME} says rank {said} for {module}, its tensors have {rank}")
        alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
        return _number(path, "lora_alpha", alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    parts = _parts(path / PEFT_NAME, _PEFT_NAME, _PEFT_PREFIX)
    return [
        _low_rank(path, module, pair["A"], pair["B"], scale(module, len(pair["A"])))
        for module, pair in parts.items()
    ]


def _read_mlx(path: Path, config: Mapping[str, Any]) -> list[LowRank]:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ModelError(
            f"{path}: fine_tune_type is {kind!r}, and vt applies lora; fuse the adapter into its model with "
            "mlx_lm.fuse, and convert that"
        )
    parameters = config.get("lora_parameters")
    scale = _number(path, "lora_parameters.scale", (parameters or {}).get("scale"))
    parts = _parts(path / MLX_NAME, _MLX_NAME, "")
    return [_low_rank(path, module, pair["a"].T, pair["b"].T, scale) for module, pair in parts.items()]


def _parts(file: Path, pattern: re.Pattern[str], prefix: str) -> dict[str, dict[str, Floats]]:
    """Both tensors of each layer, by the layer's path."""
    parts: dict[str, dict[str, Floats]] = {}
    for name, tensor in _tensors(file).items():
        match = pattern.fullmatch(name.removeprefix(prefix))
        module = name.removeprefix(prefix).partition(".lora_")[0] if match is None else match["module"]
        if module.removesuffix(".weight").rpartition(".")[2] in _TABLES:
            raise ModelError(
                f"{file} changes the vocabulary table {module} ({name}), and vt adapts the other layers "
                "only; merge the adapter into its model, and convert that"
            )
        if match is None or tensor.ndim != 2:
            raise ModelError(f"{file} holds {name} {list(tensor.shape)}, which is no part of a plain LoRA")
        parts.setdefault(module, {})[match["part"]] = tensor
    if not parts:
        raise ModelError(f"{file} holds no adapter")
    for module, pair in parts.items():
        if len(pair) != 2:
            raise ModelError(f"{file} is incomplete: of the two tensors of {module} one is missing")
    return parts


def _low_rank(path: Path, module: str, a: Floats, b: Floats, scale: float) -> LowRank:
    if len(a) != b.shape[1]:
        raise ModelError(f"{path}: the two tensors of {module} have the ranks {len(a)} and {b.shape[1]}")
    return LowRank(module, np.ascontiguousarray(a), np.ascontiguousarray(b), scale)


def _by_pattern(config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """What PEFT takes for a module: of the first pattern that its path ends with."""
    for pattern, value in (config.get(name) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _number(path: Path, name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ModelError(f"{path / CONFIG_NAME}: {name} is {value!r} and should be a number")
    return float(value)


def _tensors(file: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}); download it again") from error
    tensors = {}
    for name, tensor in stored:
        if tensor["dtype"] not in _DTYPES:
            raise ModelError(f"{file} holds {name} as {tensor['dtype']}, and an adapter of vt's is of floats")
        dtype = _DTYPES[tensor["dtype"]]
        values = np.frombuffer(tensor["data"], storage_dtype(dtype)).reshape(tensor["shape"])
        tensors[name] = to_float32(values, dtype)
    return tensors
