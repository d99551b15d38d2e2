"""Taking back tokens from mlx-lm's caches.

A rotating cache overwrites what it forgets, and its own ``trim`` is wrong once it has wrapped; state-space
layers keep no past at all. So what a step is about to overwrite is kept before it is built, and put back in
reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
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
    """What single-token steps did to the caches of a request, as far back as the last :meth:`rewind`."""

    def __init__(self, caches: list[Any]) -> None:
        self._caches = _leaves(caches)
        self._log: list[list[Undo]] = []
        self.can_rewind = all(type(cache) in _RECORD for cache in self._caches)

    def record(self) -> None:
        """A step is about to be built."""
        if self.can_rewind:
            self._log.append([_RECORD[type(cache)](cache) for cache in self._caches])

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` steps, and forget how to take back those before them."""
        if count > len(self._log):
            raise AssertionError(f"{count} steps to take back, {len(self._log)} recorded")
        for _ in range(count):
            for undo in self._log.pop():
                undo()
        self._log.clear()


def _leaves(caches: list[Any]) -> list[Any]:
    return [
        leaf
        for cache in caches
        for leaf in (_leaves(list(cache.caches)) if isinstance(cache, CacheList) else [cache])
    ]


def _record_trimmable(cache: Any) -> Undo:
    def undo() -> None:
        taken = cache.trim(1)
        if taken != 1:
            raise AssertionError(f"{type(cache).__name__} took back {taken} tokens instead of 1")

    return undo


def _record_rotating(cache: RotatingKVCache) -> Undo:
    if cache.keys is not None and cache.keys.shape[2] > cache.max_size:
        # Behind a prompt longer than the window the next step cuts the arrays to it: into new ones.
        return _record_references(cache)
    offset, index = cache.offset, cache._idx
    slot = cache.keep if index == cache.max_size else index
    kept = None
    if cache.keys is not None and slot < cache.keys.shape[2]:
        # A real copy, made now: a slice would change with the buffer, and hold it, so that writes copy it
        # whole.
        place = mx.array([slot])
        kept = mx.take(cache.keys, place, axis=2), mx.take(cache.values, place, axis=2)
        mx.async_eval(*kept)

    def undo() -> None:
        if kept is not None:
            cache.keys[..., slot : slot + 1, :], cache.values[..., slot : slot + 1, :] = kept
        cache.offset, cache._idx = offset, index

    return undo


def _record_references(cache: Any) -> Undo:
    # What these hold is replaced, or written to behind ``offset`` only.
    names = [name for name in ("keys", "values", "offset", "start_position", "_idx") if hasattr(cache, name)]
    state = [getattr(cache, name) for name in names]

    def undo() -> None:
        for name, value in zip(names, state, strict=True):
            setattr(cache, name, value)

    return undo


def _record_arrays(cache: ArraysCache) -> Undo:
    # These layers replace their arrays and never write into them.
    state = list(cache.cache)

    def undo() -> None:
        cache.cache = state

    return undo


_RECORD: dict[type, Callable[[Any], Undo]] = {
    KVCache: _record_trimmable,
    QuantizedKVCache: _record_trimmable,
    ChunkedKVCache: _record_references,
    ConcatenateKVCache: _record_references,
    RotatingKVCache: _record_rotating,
    ArraysCache: _record_arrays,
}
