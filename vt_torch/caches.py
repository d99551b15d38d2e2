"""transformers' caches: saving them, and taking back what rotary embeddings remember about a text's length.

Dynamic NTK scaling computes new frequencies whenever a text becomes longer than all before it, and keeps
them. After tokens were taken back, and in the next request, keys would be rotated by the wrong ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

#: Attributes of a rotary embedding, besides its buffers, that depend on the lengths that it has seen.
_REMEMBERED = ("max_seq_len_cached", "attention_scaling", "original_inv_freq")


class _State(NamedTuple):
    buffers: dict[str, Any]
    attributes: dict[str, Any]


class RotaryLog:
    """The frequencies of dynamic rotary embeddings before each step since the last :meth:`rewind`."""

    def __init__(self, model: nn.Module) -> None:
        """Take ``model`` as it was loaded: no text has been read yet."""
        self._modules = [module for module in model.modules() if _is_dynamic(module)]
        self._first = self._states()
        self._log: list[list[_State]] = []

    def begin(self) -> None:
        """Restore the state before any text."""
        self._log.clear()
        self._restore(self._first)

    def record(self) -> None:
        """Save the state before a step."""
        if self._modules:
            self._log.append(self._states())

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` steps. Steps before them can no longer be taken back."""
        if count and self._modules:
            self._restore(self._log[-count])
        self._log.clear()

    # References suffice: dynamic scaling makes new arrays and does not write into old ones.

    def _states(self) -> list[_State]:
        return [
            _State(
                dict(module._buffers),
                {name: value for name, value in vars(module).items() if name.endswith(_REMEMBERED)},
            )
            for module in self._modules
        ]

    def _restore(self, states: list[_State]) -> None:
        for module, state in zip(self._modules, states, strict=True):
            module._buffers.update(state.buffers)
            for name in [name for name in vars(module) if name.endswith(_REMEMBERED)]:
                if name not in state.attributes:
                    delattr(module, name)
            vars(module).update(state.attributes)


def _is_dynamic(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding that computes new frequencies for longer texts."""
    kinds = getattr(module, "rope_type", None)
    each = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and "dynamic" in kind for kind in each)


#: Attributes that follow from the tensors.
_DERIVED = ("dtype", "device")


def export_cache(cache: DynamicCache) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Tensors of a cache by name, in storage dtypes, and the other attributes of its layers.

    An attribute is a tensor, a plain value, or a dictionary of these by number (the states of recurrent
    layers).
    """
    arrays: dict[str, np.ndarray] = {}
    layers = []
    for index, layer in enumerate(cache.layers):
        values: dict[str, Any] = {"class": type(layer).__name__}
        for name, value in vars(layer).items():
            if name in _DERIVED:
                continue
            parts = value if isinstance(value, dict) else {None: value}
            exported = {key: _exported(part, f"{index}.{name}.{key}", arrays) for key, part in parts.items()}
            values[name] = [*exported.items()] if isinstance(value, dict) else exported[None]
        layers.append(values)
    return arrays, layers


def restore_cache(
    cache: DynamicCache, arrays: Mapping[str, np.ndarray], layers: list[dict[str, Any]], device: torch.device
) -> None:
    """Give an empty cache of the same model what :func:`export_cache` gave.

    Raises:
        ValueError: layers or attributes are not those of this cache.
    """
    if len(layers) != len(cache.layers):
        raise ValueError(f"{len(layers)} layers instead of {len(cache.layers)}")
    for layer, saved in zip(cache.layers, layers, strict=True):
        values = dict(saved)
        if values.pop("class") != type(layer).__name__:
            raise ValueError(f"a layer is not a {type(layer).__name__}")
        tensor = None
        for name, value in values.items():
            if name in _DERIVED or name.startswith("__") or callable(getattr(type(layer), name, None)):
                raise ValueError(f"{name} is not an attribute of a cache")
            if isinstance(value, list):
                restored: Any = {key: _restored(part, arrays, device) for key, part in value}
                tensors = [part for part in restored.values() if isinstance(part, torch.Tensor)]
            else:
                restored = _restored(value, arrays, device)
                tensors = [restored] if isinstance(restored, torch.Tensor) else []
            tensor = next((part for part in tensors if part.is_floating_point()), tensor)
            setattr(layer, name, restored)
        if tensor is not None:
            layer.dtype, layer.device = tensor.dtype, tensor.device


def _exported(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu().contiguous()
    kind = str(tensor.dtype).removeprefix("torch.")
    arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return {"array": name, "dtype": kind}


def _restored(value: Any, arrays: Mapping[str, np.ndarray], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    tensor = torch.from_numpy(arrays[value["array"]].copy())
    if value["dtype"] == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    elif str(tensor.dtype) != f"torch.{value['dtype']}":
        raise ValueError(f"{value['array']} is not {value['dtype']}")
    return tensor.to(device)
