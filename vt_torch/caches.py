"""transformers' caches: taking tokens back from them, and saving them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from vt_torch.compiled import FixedLayer
from vt_torch.growing import GrowingLayer

#: Layers that this module takes tokens back from. Another class may have states of its own.
_KNOWN = (
    DynamicLayer,
    GrowingLayer,
    FixedLayer,
    DynamicSlidingWindowLayer,
    DynamicIndexedLayer,
    DummyLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def can_take_back(cache: DynamicCache) -> bool:
    """Whether tokens can be taken back from a cache: its layers are known, and they have read a prompt."""
    return all(type(layer) in _KNOWN for layer in cache.layers) and all(
        any(layer.is_conv_states_initialized.values()) or is_recurrent(layer)
        for layer in cache.layers
        if isinstance(layer, LinearAttentionLayer)
    )


def is_recurrent(layer: Any) -> bool:
    """Whether a layer keeps a state instead of a past. Known only after the first tokens: a layer that only
    convolves has the same class.
    """
    return isinstance(layer, LinearAttentionLayer) and any(layer.is_recurrent_states_initialized.values())


def record_past(cache: DynamicCache) -> None:
    """Keep what slides out of windows from now on, and drop what was kept so far."""
    for layer in cache.layers:
        if _can_record(layer):
            layer.activate_past_recording()
            layer.crop(0)


def stop_recording(cache: DynamicCache) -> None:
    """Keep only what the next tokens need. A prompt would be kept whole otherwise."""
    for layer in cache.layers:
        if _can_record(layer) and layer.record_past:
            layer.crop(0)
            layer.record_past = False


def _can_record(layer: Any) -> bool:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return layer.is_initialized
    return isinstance(layer, LinearAttentionLayer) and layer.is_croppable


def take_back(cache: DynamicCache, count: int) -> None:
    """Take back the last ``count`` tokens of a cache that records the past, and keep what was recorded before
    them: more can be taken back later. ``DynamicCache.crop`` would drop it. Recurrent states stay as they
    are: see :class:`Snapshot`.
    """
    for layer in cache.layers:
        if isinstance(layer, (DynamicIndexedLayer, FixedLayer)):
            layer.crop(-count)
            continue
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length -= count
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            layer.keys, layer.values = layer.keys[..., :-count, :], layer.values[..., :-count, :]
        if isinstance(layer, LinearAttentionLayer) and layer.is_croppable:
            for at, states in layer.conv_states.items():
                layer.conv_states[at] = states[..., :-count]


class Snapshot:
    """The states of the recurrent layers of a cache at one moment; the layers overwrite theirs in place."""

    def __init__(self) -> None:
        self._saved: dict[tuple[int, str, int], torch.Tensor] = {}

    def take(self, cache: DynamicCache) -> None:
        """Save the states, in the arrays of the last time where they fit."""
        for place, state in self._states(cache):
            saved = self._saved.get(place)
            if saved is None or saved.shape != state.shape:
                self._saved[place] = state.clone()
            else:
                saved.copy_(state)

    def restore(self, cache: DynamicCache) -> None:
        """Give the layers the states that were saved."""
        for (index, name, at), saved in self._saved.items():
            getattr(cache.layers[index], name)[at] = saved.clone()

    @property
    def nbytes(self) -> int:
        return sum(saved.nbytes for saved in self._saved.values())

    def _states(self, cache: DynamicCache) -> Iterator[tuple[tuple[int, str, int], torch.Tensor]]:
        for index, layer in enumerate(cache.layers):
            if is_recurrent(layer):
                for name in ("conv_states", "recurrent_states"):
                    for at, state in getattr(layer, name).items():
                        if state is not None:
                            yield (index, name, at), state


#: Attributes that follow from the tensors.
_DERIVED = ("dtype", "device", "_grown")


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes that the tensors of a cache occupy, the rest of a tensor of which a part is used included."""
    values = [value for layer in cache.layers for value in vars(layer).values()]
    parts = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))


def export_cache(cache: DynamicCache) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Tensors of a cache by name, in storage dtypes, and the other attributes of its layers.

    An attribute is a tensor, a plain value, or a dictionary of these by number (the states of recurrent
    layers).
    """
    arrays: dict[str, np.ndarray] = {}
    layers = []
    for index, layer in enumerate(cache.layers):
        values: dict[str, Any] = {"class": _kind(layer)}
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
        if values.pop("class") != _kind(layer):
            raise ValueError(f"a layer is not a {_kind(layer)}")
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


def _kind(layer: Any) -> str:
    """Name of transformers' class of a layer."""
    return (DynamicLayer if type(layer) is GrowingLayer else type(layer)).__name__


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
