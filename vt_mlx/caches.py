"""Taking back tokens from mlx-lm's caches.

A rotating cache overwrites its oldest entry, and its own ``trim`` is wrong once it has wrapped. State-space
layers keep no past at all. So each step saves what it is about to overwrite, and rewinding restores it in
reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

Undo = Callable[[], None]


class CacheLog:
    """Undo log of the caches of a request: what reads changed since the last :meth:`settle`."""

    def __init__(self, caches: list[Any]) -> None:
        self._caches = _leaves(caches)
        self._log: list[tuple[int, list[Undo]]] = []
        self.can_rewind = all(type(cache) in _RECORD for cache in self._caches)

    def record(self, count: int) -> None:
        """Save the state before ``count`` tokens are read at once."""
        if self.can_rewind:
            self._log.append((count, [_RECORD[type(cache)](cache, count) for cache in self._caches]))

    def rewind(self, count: int) -> int:
        """Take back the last ``count`` tokens.

        Returns:
            How many tokens before them went as well: a read is taken back whole.
        """
        taken = 0
        while taken < count:
            if not self._log:
                raise AssertionError(f"{count} tokens to take back, {taken} recorded")
            tokens, undos = self._log.pop()
            for undo in undos:
                undo()
            taken += tokens
        return taken - count

    def settle(self) -> None:
        """Tokens so far can no longer be taken back."""
        self._log.clear()

    def cut(self, count: int) -> bool:
        """Take back ``count`` tokens, maybe none, whenever they were read. Returns False, and does nothing,
        where that cannot be done exactly.
        """
        if count and any(type(cache) is not KVCache for cache in self._caches):
            return False
        for cache in self._caches if count else []:
            cache.trim(count)
        self._log.clear()
        return True


def copy_caches(source: list[Any], target: list[Any]) -> None:
    """Make empty caches of the same model hold what others hold, in arrays of their own."""

    def copied(part: Any) -> Any:
        return mx.array(part) if isinstance(part, mx.array) else part

    for old, new in zip(_leaves(source), _leaves(target), strict=True):
        if not old.empty():
            new.state = tree_map(copied, old.state)


def cache_bytes(caches: list[Any]) -> int:
    """Bytes of the arrays of some caches, spare places included."""
    parts = [part for cache in _leaves(caches) for _, part in tree_flatten(vars(cache))]
    return sum(part.nbytes for part in parts if isinstance(part, mx.array))


def export_caches(caches: list[Any]) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Arrays of the caches by name, in storage dtypes, and the rest of their states as JSON can hold it."""
    arrays: dict[str, np.ndarray] = {}

    def exported(path: str, part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return [exported(f"{path}.{index}", item) for index, item in enumerate(part)]
        if not isinstance(part, mx.array):
            return part
        kind = str(part.dtype).removeprefix("mlx.core.")
        arrays[path] = np.array(part.view(mx.uint16) if part.dtype == mx.bfloat16 else part)
        return {"array": path, "dtype": kind}

    layers = [
        {"class": type(cache).__name__, "state": None if cache.empty() else exported(str(index), cache.state)}
        for index, cache in enumerate(_leaves(caches))
    ]
    return arrays, layers


def restore_caches(caches: list[Any], arrays: Mapping[str, np.ndarray], layers: list[Any]) -> None:
    """Give empty caches of the same model what :func:`export_caches` gave.

    Raises:
        ValueError: the layers are not those of these caches.
    """

    def restored(part: Any) -> Any:
        if isinstance(part, list):
            return [restored(item) for item in part]
        if not isinstance(part, dict):
            return part
        array = mx.array(arrays[part["array"]])
        if part["dtype"] == "bfloat16":
            return array.view(mx.bfloat16)
        if str(array.dtype) != f"mlx.core.{part['dtype']}":
            raise ValueError(f"{part['array']} is not {part['dtype']}")
        return array

    for cache, saved in zip(_leaves(caches), layers, strict=True):
        if saved["class"] != type(cache).__name__:
            raise ValueError(f"a layer is not a {type(cache).__name__}")
        if saved["state"] is not None:
            cache.state = restored(saved["state"])


def _leaves(caches: list[Any]) -> list[Any]:
    return [
        leaf
        for cache in caches
        for leaf in (_leaves(list(cache.caches)) if isinstance(cache, CacheList) else [cache])
    ]


def _record_trimmable(cache: Any, count: int) -> Undo:
    def undo() -> None:
        taken = cache.trim(count)
        if taken != count:
            raise AssertionError(f"{type(cache).__name__} took back {taken} tokens instead of {count}")

    return undo


def _record_rotating(cache: RotatingKVCache, count: int) -> Undo:
    if count > 1 or (cache.keys is not None and cache.keys.shape[2] > cache.max_size):
        # Several tokens go into new arrays. So does the next one after a prompt longer than the window.
        return _record_references(cache, count)
    offset, index = cache.offset, cache._idx
    slot = cache.keep if index == cache.max_size else index
    kept = None
    if cache.keys is not None and slot < cache.keys.shape[2]:
        # A copy, made now: a slice would change with the buffer, and refer to it, so that every write would
        # copy the whole buffer.
        place = mx.array([slot])
        kept = mx.take(cache.keys, place, axis=2), mx.take(cache.values, place, axis=2)
        mx.async_eval(*kept)

    def undo() -> None:
        if kept is not None:
            cache.keys[..., slot : slot + 1, :], cache.values[..., slot : slot + 1, :] = kept
        cache.offset, cache._idx = offset, index

    return undo


def _record_references(cache: Any, count: int) -> Undo:
    # These caches replace their arrays, or write after ``offset`` only.
    names = [name for name in ("keys", "values", "offset", "start_position", "_idx") if hasattr(cache, name)]
    state = [getattr(cache, name) for name in names]

    def undo() -> None:
        for name, value in zip(names, state, strict=True):
            setattr(cache, name, value)

    return undo


def _record_arrays(cache: ArraysCache, count: int) -> Undo:
    # These layers replace their arrays and never write to them.
    state = list(cache.cache)

    def undo() -> None:
        cache.cache = state

    return undo


_RECORD: dict[type, Callable[[Any, int], Undo]] = {
    KVCache: _record_trimmable,
    QuantizedKVCache: _record_trimmable,
    ChunkedKVCache: _record_references,
    ConcatenateKVCache: _record_references,
    RotatingKVCache: _record_rotating,
    ArraysCache: _record_arrays,
}
