"""Taking back tokens from mlx-lm's caches.

A rotating cache overwrites its oldest entry, and its own ``trim`` is wrong once it has wrapped. State-space
layers keep no past at all. So each read saves what it is about to overwrite, and rewinding restores it in
reverse order. The last tokens of a read are cut off, where every layer has a past.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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

from vt_core.decode.policy import MAX_BLOCK

Undo = Callable[[int], None]  #: takes a read back, given how many of its tokens are left

#: Most bytes of recurrent states that a log holds, as far as it can: it has at least one set of them. Of a
#: larger model only the states before every few tokens are kept.
_STATES_BYTES = 64 << 20


@dataclass
class _Entry:
    """Reads that are taken back together, except for the last tokens of the last read."""

    undos: list[tuple[int, list[Undo]]]  #: the tokens of each read, and what takes it back
    states: int  #: bytes of the recurrent states before the first

    @property
    def tokens(self) -> int:
        return sum(tokens for tokens, _ in self.undos)


class CacheLog:
    """Undo log of the caches of a request: what reads changed since the last :meth:`settle`."""

    def __init__(self, caches: list[Any]) -> None:
        self._caches = _leaves(caches)
        self._log: list[_Entry] = []
        self.can_rewind = all(type(cache) in _RECORD for cache in self._caches)
        self._can_shorten = all(type(cache) in _SHORTEN for cache in self._caches)

    def record(self, count: int) -> None:
        """Save the state before ``count`` tokens are read at once."""
        if not self.can_rewind:
            return
        last = self._log[-1] if self._log else None
        # Keep states only as often as they fit into the limit with a block of the longest length.
        if last is not None and (last.tokens + count) * _STATES_BYTES <= last.states * MAX_BLOCK:
            caches = [cache for cache in self._caches if not isinstance(cache, ArraysCache)]
            last.undos.append((count, [_RECORD[type(cache)](cache, count) for cache in caches]))
            return
        undos = [_RECORD[type(cache)](cache, count) for cache in self._caches]
        arrays = [cache for cache in self._caches if isinstance(cache, ArraysCache)]
        self._log.append(_Entry([(count, undos)], cache_bytes(arrays)))

    def rewind(self, count: int) -> int:
        """Take back the last ``count`` tokens.

        Returns:
            How many tokens before them went as well: some states are earlier ones.
        """
        taken = 0
        while taken < count:
            if not self._log:
                raise AssertionError(f"{count} tokens to take back, {taken} recorded")
            entry = self._log.pop()
            if self._can_shorten and taken + entry.tokens > count:
                ((tokens, undos),) = entry.undos  # there are no states
                for cache in self._caches:
                    _SHORTEN[type(cache)](cache, count - taken)
                self._log.append(_Entry([(tokens - (count - taken), undos)], 0))
                return 0
            for tokens, undos in reversed(entry.undos):
                for undo in undos:
                    undo(tokens)
            taken += entry.tokens
        return taken - count

    @property
    def nbytes(self) -> int:
        """Bytes of the states that are kept."""
        return sum(entry.states for entry in self._log)

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


def _trim(cache: Any, count: int) -> None:
    taken = cache.trim(count)
    if taken != count:
        raise AssertionError(f"{type(cache).__name__} took back {taken} tokens instead of {count}")


def _cut_off(cache: Any, count: int) -> None:
    """Cut off the last tokens of a read of several, which lie at the end of new arrays, in order."""
    cache.keys, cache.values = cache.keys[..., :-count, :], cache.values[..., :-count, :]
    cache.offset -= count
    if isinstance(cache, RotatingKVCache):
        cache._idx -= count


def _record_trimmable(cache: Any, count: int) -> Undo:
    return partial(_trim, cache)


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

    def undo(tokens: int) -> None:
        if kept is not None:
            cache.keys[..., slot : slot + 1, :], cache.values[..., slot : slot + 1, :] = kept
        cache.offset, cache._idx = offset, index

    return undo


def _record_references(cache: Any, count: int) -> Undo:
    # These caches replace their arrays, or write after ``offset`` only.
    names = [name for name in ("keys", "values", "offset", "start_position", "_idx") if hasattr(cache, name)]
    state = [getattr(cache, name) for name in names]

    def undo(tokens: int) -> None:
        for name, value in zip(names, state, strict=True):
            setattr(cache, name, value)

    return undo


def _record_arrays(cache: ArraysCache, count: int) -> Undo:
    # These layers replace their arrays and never write to them.
    state = list(cache.cache)

    def undo(tokens: int) -> None:
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

#: Takes back the last tokens of the last read, but not all of them.
_SHORTEN: dict[type, Callable[[Any, int], None]] = {
    KVCache: _trim,
    QuantizedKVCache: _trim,
    ChunkedKVCache: _trim,
    ConcatenateKVCache: _cut_off,
    RotatingKVCache: _cut_off,
}
