"""Low-rank adapters (LoRA) in the formats of PEFT and of mlx-lm.

A layer with an adapter computes ``layer(x) + scale * B(A(x))``. The layer's own weights are not changed, so
they may be quantized. The low-rank part is computed in float32, as PEFT and mlx-lm do before merging.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import ModelError, shorten
from vt_core.files.architectures import EMBEDDING_MODULES, HEAD_MODULES, PER_LAYER_MODULE
from vt_core.files.dtypes import storage_dtype, to_float32
from vt_core.files.json_files import is_whole, read_bytes, read_object

Floats = npt.NDArray[np.float32]

CONFIG_NAME = "adapter_config.json"
PEFT_NAME = "adapter_model.safetensors"
MLX_NAME = "adapters.safetensors"

_PEFT_PREFIX = "base_model.model."
_PEFT_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")
_MLX_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ab])")
_PLAIN_PATH = re.compile(r"[\w.-]+")
#: An adapter of rank 256 for all layers of a model of 8 billion parameters has 3 GB in float32.
_MAX_BYTES = 8 << 30
_LARGEST_SCALE = 1e30
#: Seconds that all regular expressions of one adapter's configuration may take.
_PATTERN_SECONDS = 2.0
_MAX_PATTERN = 1000
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TABLES = frozenset({*EMBEDDING_MODULES, *HEAD_MODULES, PER_LAYER_MODULE})
#: PEFT settings that change what an adapter computes, and their values that do not.
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
#: Initializations of `init_lora_weights` that also change the model's own weights.
_CHANGES_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """The adapter of one layer, float32."""

    module: str  #: path of the layer within the model
    a: Floats  #: ``[rank, inputs]``
    b: Floats  #: ``[outputs, rank]``
    scale: float

    def check(self, outputs: int, inputs: int) -> None:
        """Raise ModelError unless the layer has these sizes."""
        if (len(self.b), self.a.shape[1]) != (outputs, inputs):
            raise ModelError(
                f"the adapter of {self.module} is for a layer of {self.a.shape[1]} inputs and {len(self.b)} "
                f"outputs, and this model's has {inputs} and {outputs}; use the adapter's own base model"
            )

    def missing(self) -> ModelError:
        """The error for a model that has no such layer."""
        return ModelError(
            f"the adapter changes {self.module}, and this model has no such linear layer that vt can adapt; "
            "use the adapter's own base model"
        )


def read_adapter(directory: str | Path) -> list[LowRank]:
    """Read the low-rank layers of an adapter directory.

    Raises:
        ModelError: there is no adapter, it cannot be read, or vt does not apply its kind.
    """
    path = Path(directory).expanduser()
    if not (path / CONFIG_NAME).is_file():
        raise ModelError(f"{path} is not an adapter: it has no {CONFIG_NAME}")
    config = read_object(path / CONFIG_NAME, "adapter configuration", ModelError, strict=False)
    if (path / PEFT_NAME).is_file():
        return _read_peft(path, config)
    if (path / MLX_NAME).is_file():
        return _read_mlx(path, config)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise ModelError(
            f"{path} has a pickled adapter only, and vt reads safetensors; save it with PEFT's "
            "save_pretrained(DIR, safe_serialization=True)"
        )
    raise ModelError(f"{path} has neither {PEFT_NAME} nor {MLX_NAME}")


def _read_peft(path: Path, config: Mapping[str, Any]) -> list[LowRank]:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type is {shorten(kind)}, and vt applies LORA")
    for name, neutral in _PEFT_NEUTRAL.items():
        if config.get(name) not in neutral:
            raise ModelError(
                f"{path}: {name} is {shorten(config[name])}, which vt does not apply; merge the adapter into "
                "its model with PEFT's merge_and_unload, and convert that"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_MODEL):
        raise ModelError(
            f"{path}: init_lora_weights is {shorten(start)}, which changes the model's own weights as well; "
            "merge the adapter with PEFT's merge_and_unload, and convert that"
        )
    ranks = _ModulePatterns(path, "rank_pattern", config.get("rank_pattern"))
    alphas = _ModulePatterns(path, "alpha_pattern", config.get("alpha_pattern"))

    def scale(module: str, rank: int) -> float:
        expected = ranks.get(module, config.get("r"))
        if expected != rank:
            raise ModelError(
                f"{path}: {CONFIG_NAME} says rank {shorten(expected)} for {module}, its tensors have {rank}"
            )
        alpha = _number(path, "lora_alpha", alphas.get(module, config.get("lora_alpha")))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    parts = _parts(path / PEFT_NAME, _PEFT_NAME, _PEFT_PREFIX)
    return [
        _low_rank(path, module, pair["A"], pair["B"], scale(module, len(pair["A"])))
        for module, pair in parts.items()
    ]


def _read_mlx(path: Path, config: Mapping[str, Any]) -> list[LowRank]:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ModelError(
            f"{path}: fine_tune_type is {shorten(kind)}, and vt applies lora; fuse the adapter into its "
            "model with mlx_lm.fuse, and convert that"
        )
    parameters = config.get("lora_parameters")
    scale = _number(
        path, "lora_parameters.scale", parameters.get("scale") if isinstance(parameters, dict) else None
    )
    parts = _parts(path / MLX_NAME, _MLX_NAME, "")
    return [_low_rank(path, module, pair["a"].T, pair["b"].T, scale) for module, pair in parts.items()]


def _parts(file: Path, pattern: re.Pattern[str], prefix: str) -> dict[str, dict[str, Floats]]:
    """The two tensors of each layer, by the layer's path."""
    parts: dict[str, dict[str, Floats]] = {}
    for name, tensor in _tensors(file).items():
        match = pattern.fullmatch(name.removeprefix(prefix))
        module = name.removeprefix(prefix).partition(".lora_")[0] if match is None else match["module"]
        if module.removesuffix(".weight").rpartition(".")[2] in _TABLES:
            raise ModelError(
                f"{file} changes the vocabulary table {module} ({name}), and vt adapts other layers only; "
                "merge the adapter into its model, and convert that"
            )
        if match is None or tensor.ndim != 2 or tensor.size == 0:
            raise ModelError(f"{file} holds {name} {list(tensor.shape)}, which is not part of a plain LoRA")
        parts.setdefault(module, {})[match["part"]] = tensor
    if not parts:
        raise ModelError(f"{file} has no tensors of an adapter")
    for module, pair in parts.items():
        if len(pair) != 2:
            raise ModelError(f"{file} is incomplete: one of the two tensors of {module} is missing")
    return parts


def _low_rank(path: Path, module: str, a: Floats, b: Floats, scale: float) -> LowRank:
    if len(a) != b.shape[1]:
        raise ModelError(f"{path}: the two tensors of {module} have the ranks {len(a)} and {b.shape[1]}")
    return LowRank(module, np.ascontiguousarray(a), np.ascontiguousarray(b), scale)


class _ModulePatterns:
    """PEFT's `rank_pattern` or `alpha_pattern`: values for modules, by the first pattern that fits.

    A pattern is a regular expression that the end of a module's path must match, starting at a dot. Most are
    plain names, which need no engine. Others run with a limit on time: a file can hold an expression that
    takes years.
    """

    def __init__(self, path: Path, name: str, values: Any) -> None:
        self._where = f"{path / CONFIG_NAME}: {name}"
        if values is None:
            values = {}
        if not isinstance(values, dict) or not all(is_whole(value, 1 << 31) for value in values.values()):
            raise ModelError(f"{self._where} is {shorten(values)} and should map names to whole numbers")
        self._values: dict[str, int] = values
        self._seconds = _PATTERN_SECONDS

    def get(self, module: str, default: Any) -> Any:
        """The value for a module; `default` where no pattern fits. Raises ModelError."""
        return next((value for key, value in self._values.items() if self._fits(key, module)), default)

    def _fits(self, pattern: str, module: str) -> bool:
        if _PLAIN_PATH.fullmatch(pattern):
            return module == pattern or module.endswith(f".{pattern}")
        import regex  # as re, with a limit on time

        start = time.monotonic()
        try:
            if len(pattern) > _MAX_PATTERN:
                raise ValueError(f"it is longer than {_MAX_PATTERN} characters")
            return bool(regex.fullmatch(rf"(.*\.)?({pattern})", module, timeout=max(1e-3, self._seconds)))
        except (TimeoutError, ValueError, RecursionError, regex.error) as error:
            reason = "it takes too long" if isinstance(error, TimeoutError) else error
            raise ModelError(f"{self._where}: {shorten(pattern)} cannot be matched ({reason})") from error
        finally:
            self._seconds -= time.monotonic() - start


def _number(path: Path, name: str, value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not -_LARGEST_SCALE < value < _LARGEST_SCALE:  # NaN is not smaller than anything
        raise ModelError(f"{path / CONFIG_NAME}: {name} is {shorten(value)} and should be a number")
    return float(value)


def _tensors(file: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(read_bytes(file, "adapter", ModelError, _MAX_BYTES))
    except SafetensorError as error:
        raise ModelError(f"{file} cannot be read ({error}); download it again") from error
    tensors = {}
    for name, tensor in stored:
        if tensor["dtype"] not in _DTYPES:
            raise ModelError(f"{file} holds {name} as {tensor['dtype']}, and vt reads float adapters")
        dtype = _DTYPES[tensor["dtype"]]
        values = np.frombuffer(tensor["data"], storage_dtype(dtype)).reshape(tensor["shape"])
        tensors[name] = to_float32(values, dtype)
    return tensors


def layers_digest(layers: Sequence[LowRank]) -> str | None:
    """SHA-256, in hex, over the layers of an adapter; None for no adapter."""
    if not layers:
        return None
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(repr((layer.module, layer.a.shape, layer.b.shape, layer.scale)).encode())
        digest.update(np.ascontiguousarray(layer.a).tobytes() + np.ascontiguousarray(layer.b).tobytes())
    return digest.hexdigest()
