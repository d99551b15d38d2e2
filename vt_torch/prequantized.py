"""Models whose layers are already quantized, with GPTQ or AWQ. transformers itself reads compressed-tensors;
BitNet's layers are in :mod:`vt_torch.ternary`.

Layers with 4 bits in groups stay packed, for PyTorch's 4-bit kernel. Other layers are dequantized while they
are loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vt_core.errors import BackendError, ModelError
from vt_core.files.model_dir import ModelDirectory
from vt_core.host import trim_heap
from vt_torch.quantized import (
    GROUPS,
    Int4Linear,
    StoredLinear,
    StoredWeight,
    multiplies_four_bits,
    pack_pairs,
)
from vt_torch.ternary import StoredTernary, TernaryLayout, declare_ternary, ternary_layout

#: Packages that transformers needs for a layout, by its name in config.json: module and name of each.
_PACKAGES = {"compressed-tensors": {"compressed_tensors": "compressed-tensors"}}
#: Tensors of a layer, by layout.
_PARTS = {"gptq": ("qweight", "qzeros", "scales", "g_idx"), "awq": ("qweight", "qzeros", "scales")}
_BITS = {"gptq": (2, 4, 8), "awq": (4,)}
#: Known variants of each layout, the default first, and the older field of config.json for "format".
_FORMS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_LEGACY = {"gptq": "checkpoint_format", "awq": "version"}
#: Order in which AWQ packs eight neighbors into a word, lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD_BITS = 32
_OLDER, _NEWER = "language_model.model.", "model.language_model."


def check_packages(directory: ModelDirectory) -> None:
    """Check that already quantized layers, if the model has any, can be run here.

    Raises:
        BackendError: a package is missing.
    """
    method = directory.prequantized
    if method is None:
        return
    packages = _PACKAGES.get(method, {})
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BackendError(
            f"{directory.name} holds layers quantized with {method}, for which transformers needs "
            f"{' and '.join(missing)}; install with: pip install {' '.join(missing)}"
        )


@dataclass(frozen=True)
class Layout:
    """How GPTQ or AWQ packed the layers of a model, according to config.json."""

    method: str
    bits: int
    one_less: bool  #: whether zeros are stored minus one
    in_order: bool = True  #: whether the columns of a group are adjacent
    group: int | None = None  #: columns per group

    def stays(self, device: torch.device) -> bool:
        """Whether most layers can probably stay in 4 bits on a device. Each layer decides for itself."""
        fits = self.bits == 4 and self.in_order and self.group in GROUPS
        return fits and multiplies_four_bits(device, torch.bfloat16)

    def numbers(self, words: torch.Tensor) -> torch.Tensor:
        """Unpacked integers ``[out, in]`` int32."""
        return self._unpacked(words.T).contiguous() if self.method == "gptq" else self._unpacked(words).T

    def zeros(self, words: torch.Tensor) -> torch.Tensor:
        """Unpacked zeros ``[out, groups]`` int32."""
        found = self._unpacked(words).T
        return found + 1 & (1 << self.bits) - 1 if self.one_less else found

    def _unpacked(self, words: torch.Tensor) -> torch.Tensor:
        """Unpack the last axis of words."""
        count = _WORD_BITS // self.bits
        places = [_AWQ_ORDER.index(index) for index in range(count)] if self.method == "awq" else range(count)
        shifts = self.bits * torch.tensor(list(places), dtype=torch.int32, device=words.device)
        return (words[..., None] >> shifts & (1 << self.bits) - 1).flatten(-2)


def find_layout(directory: ModelDirectory) -> Layout | TernaryLayout | None:
    """The layout of a model's layers; None unless it is GPTQ, AWQ or BitNet's.

    Raises:
        ModelError: an unknown variant.
    """
    method = directory.prequantized
    if method == "bitnet":
        return ternary_layout(directory)
    if method not in _PARTS:
        return None
    settings = directory.config["quantization_config"]
    bits, legacy = settings.get("bits"), _LEGACY[method]
    form = str(settings.get(legacy) or settings.get("format") or _FORMS[method][0]).lower()
    if not isinstance(bits, int) or bits not in _BITS[method] or form not in _FORMS[method]:
        raise ModelError(
            f"{directory.name} holds {method} layers of {bits} bits in the form {form!r}; vt reads AWQ's "
            "gemm form of 4 bits, and GPTQ's of 2, 4 and 8. Use the original weights, or a GGUF file"
        )
    shuffled = bool(settings.get("desc_act")) and not settings.get("static_groups")
    return Layout(method, bits, form == "gptq", not shuffled, settings.get("group_size"))


def declare(model: nn.Module, layout: Layout | TernaryLayout, tensors: Mapping[str, Any]) -> None:
    """Replace the packed linear layers of a model that was just declared by :class:`PrequantizedLinear` or
    :class:`~vt_torch.ternary.StoredTernary`.

    Args:
        model: the model, on the meta device.
        layout: how the layers are packed.
        tensors: tensors of the body by name: slices of an open safetensors file.

    Raises:
        ModelError: a packed layer is not linear in the model, or its tensors do not fit.
    """
    if isinstance(layout, TernaryLayout):
        declare_ternary(model, layout, tensors)
        return
    for name in tensors:
        path = name.removesuffix(".qweight")
        if path == name:
            continue
        place, layer = find_module(model, path)
        if layer is None:
            continue  # a layer that the model does not have; its tensors are reported as not used
        if type(layer) is not nn.Linear:
            raise ModelError(
                f"{name}: {place} is not a linear layer in {type(model).__name__}; vt cannot read it"
            )
        model.set_submodule(place, PrequantizedLinear(layout, layer, path, tensors))


def declare_integers(model: nn.Module, tensors: dict[str, Any]) -> None:
    """Replace the linear layers that are stored as integers, of a model that was just declared, by
    :class:`~vt_torch.quantized.StoredLinear`.

    Args:
        model: the model, on the meta device.
        tensors: tensors of the body by name. Those of layers that are not linear in the model are replaced by
            the floats that they stand for.

    Raises:
        ModelError: the tensors of a layer do not fit.
    """
    for name in list(tensors):
        path = name.removesuffix(".numbers")
        if path == name:
            continue
        place, layer = find_module(model, path)
        if type(layer) is nn.Linear:
            model.set_submodule(place, StoredLinear(layer, path, tensors))
            continue
        tensors[f"{path}.weight"] = StoredWeight(path, tensors)
        for part in ("numbers", "scales", "zeros"):
            tensors.pop(f"{path}.{part}", None)


def find_module(model: nn.Module, path: str) -> tuple[str, Any]:
    """The module whose tensors a file has under ``path``: its name in the model, and itself or None."""
    # Files of multimodal models may have an older prefix (Gemma 3), others none.
    inside, prefix = path.removeprefix(_OLDER), getattr(model, "base_model_prefix", "")
    for place in (f"{_NEWER}{inside}" if inside != path else path, f"{prefix}.{path}"):
        try:
            return place, model.get_submodule(place)
        except AttributeError:
            continue
    return path, None


def finish(model: nn.Module) -> None:
    """Replace each layer that :func:`declare` put into a loaded model by one that can run, one by one."""
    stored = (PrequantizedLinear, StoredTernary, StoredLinear)
    # By name: a list of modules would keep all packed tensors until the last one is done.
    for path in [path for path, module in model.named_modules() if isinstance(module, stored)]:
        model.set_submodule(path, model.get_submodule(path).finished())
        # Freed memory stays in the C library's heap.
        trim_heap()


class PrequantizedLinear(nn.Module):
    """The packed tensors of a linear layer while the model is loaded."""

    def __init__(self, layout: Layout, layer: nn.Linear, path: str, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        self._layout = layout
        for part in _PARTS[layout.method]:
            if (stored := tensors.get(f"{path}.{part}")) is None:
                raise ModelError(f"{path}.{part} is missing beside {path}.qweight; convert the model again")
            dtype = layer.weight.dtype if part == "scales" else torch.int32
            # The loader would convert one into the other and lose digits.
            if stored.get_dtype().startswith(("I", "U")) != (part != "scales"):
                raise ModelError(
                    f"{path}.{part} has the type {stored.get_dtype()} instead of "
                    f"{'floats' if part == 'scales' else 'integers'}; convert the model again"
                )
            self.register_buffer(part, torch.empty(stored.get_shape(), dtype=dtype, device="meta"))
        self._check(layer, path)
        self.bias = layer.bias
        # Some files have a bias of zeros for every layer.
        if self.bias is None and f"{path}.bias" in tensors:
            self.bias = nn.Parameter(layer.weight.new_empty(layer.out_features), requires_grad=False)

    def _check(self, layer: nn.Linear, path: str) -> None:
        rows, columns, count = layer.out_features, layer.in_features, _WORD_BITS // self._layout.bits
        groups = self.scales.shape[0] if self.scales.dim() == 2 else 0
        gptq = self._layout.method == "gptq"
        expected = {
            "qweight": (columns // count, rows) if gptq else (columns, rows // count),
            "qzeros": (groups, rows // count),
            "scales": (groups, rows),
            "g_idx": (columns,),
        }
        whole = groups and rows % count == 0 and columns % groups == 0 and columns % count == 0
        for part, buffer in self.named_buffers():
            if not whole or tuple(buffer.shape) != expected[part]:
                raise ModelError(
                    f"{path}.{part} has the shape {list(buffer.shape)}, which does not fit a layer of "
                    f"{columns} inputs and {rows} outputs with {self._layout.bits} bits"
                )

    def finished(self) -> nn.Module:
        """The layer that runs, on the device and in the float type of the loaded tensors."""
        numbers, zeros = self._layout.numbers(self.qweight), self._layout.zeros(self.qzeros)
        scales, columns = self.scales.T, numbers.shape[1]
        group = columns // scales.shape[1]
        index = torch.arange(columns, device=numbers.device) // group
        ordered = self._layout.method == "awq" or torch.equal(self.g_idx, index.to(self.g_idx.dtype))
        fits = self._layout.bits == 4 and ordered and group in GROUPS and len(numbers) % 16 == 0
        if fits and multiplies_four_bits(scales.device, scales.dtype):
            return Int4Linear(pack_pairs(numbers), scales, (8 - zeros) * scales, self.bias)
        if not ordered:
            index = self.g_idx.long()
            if int(index.min()) < 0 or int(index.max()) >= scales.shape[1]:
                raise ModelError(
                    f"g_idx names groups from {index.min()} to {index.max()}, of {scales.shape[1]}"
                )
        floats = (numbers - zeros[:, index]) * scales[:, index]
        layer = nn.Linear(columns, len(numbers), bias=False, device="meta")
        layer.weight, layer.bias = nn.Parameter(floats, requires_grad=False), self.bias
        return layer
