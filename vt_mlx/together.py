"""Reading tokens of several slots in one pass of a body, each slot with its own caches and length.

Each slot is a row of a batch, so that linear layers run once for all. Only attention runs slot by slot, on
that slot's own cache: nothing is copied from cache to cache, and nothing but the new tokens is padded.

mlx-lm's models call ``scaled_dot_product_attention`` by its name in their own module. There it is replaced by
a function that does the same for ordinary arrays, and runs slot by slot for :class:`Parts`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache

_NAME = "scaled_dot_product_attention"


class Parts:
    """Something of each slot, where a model expects one array: keys, values, or masks."""

    def __init__(self, parts: Sequence[Any], caches: Sequence[Any], counts: Sequence[int]) -> None:
        self.parts, self.caches, self.counts = parts, caches, counts


class BatchLayer:
    """One layer of the caches of several slots, as mlx-lm's models use a cache."""

    def __init__(self, caches: Sequence[Any], counts: Sequence[int]) -> None:
        self._caches, self._counts = caches, counts
        self.offset = mx.array([cache.offset for cache in caches])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Parts, Parts]:
        """Append each slot's part of ``[slots, heads, most tokens, d]``."""
        pairs = [
            cache.update_and_fetch(keys[at : at + 1, :, :count], values[at : at + 1, :, :count])
            for at, (cache, count) in enumerate(zip(self._caches, self._counts, strict=True))
        ]
        every_key, every_value = zip(*pairs, strict=True)
        return self._parts(every_key), self._parts(every_value)

    def make_mask(self, tokens: int, **options: Any) -> Parts:
        """The mask that each slot has alone."""
        masks = [
            cache.make_mask(count, **options) for cache, count in zip(self._caches, self._counts, strict=True)
        ]
        return self._parts(masks)

    def _parts(self, parts: Sequence[Any]) -> Parts:
        return Parts(parts, self._caches, self._counts)


def attention(ordinary: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """An attention function that runs ``ordinary`` once, or for :class:`Parts` once for each slot."""

    @wraps(ordinary)
    def run(
        queries: mx.array, keys: Any, values: Any, cache: Any = None, *args: Any, **options: Any
    ) -> mx.array:
        if not isinstance(keys, Parts):
            return ordinary(queries, keys, values, cache, *args, **options)
        masks = options.pop("mask")
        most, outputs = queries.shape[2], []
        for at, count in enumerate(keys.counts):
            mask = masks.parts[at] if isinstance(masks, Parts) else masks
            output = ordinary(
                queries[at : at + 1, :, :count],
                keys.parts[at],
                values.parts[at],
                keys.caches[at],
                *args,
                mask=mask,
                **options,
            )
            outputs.append(
                output if count == most else mx.pad(output, [(0, 0), (0, 0), (0, most - count), (0, 0)])
            )
        return mx.concatenate(outputs)

    run.runs_slots = True  # type: ignore[attr-defined]
    return run


def prepare(model: nn.Module) -> None:
    """Let the attention of a model's modules take :class:`Parts`."""
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        ordinary = getattr(module, _NAME, None)
        if ordinary is not None and not hasattr(ordinary, "runs_slots"):
            setattr(module, _NAME, attention(ordinary))


def divides(caches: Sequence[Sequence[Any]]) -> bool:
    """Whether these caches of slots depend on a slot's own tokens only, and are divided by slot here."""
    return all(type(cache) in (KVCache, RotatingKVCache) for slot in caches for cache in slot)


def batch_caches(caches: Sequence[Sequence[Any]], counts: Sequence[int]) -> list[BatchLayer]:
    """The caches of several slots as one, for a read of ``counts`` tokens each."""
    return [BatchLayer(layers, counts) for layers in zip(*caches, strict=True)]


def padded_rows(counts: Sequence[int]) -> tuple[mx.array, mx.array]:
    """How tokens that follow each other become a batch, and back.

    Returns:
        For each place of the batch ``[slots, most]`` the token that it holds (after the end of a slot, its
        first), and the places ``[n]`` of the tokens in the flattened batch.
    """
    most, start = max(counts), 0
    rows: list[list[int]] = []
    places: list[int] = []
    for at, count in enumerate(counts):
        rows.append([*range(start, start + count), *([start] * (most - count))])
        places += range(at * most, at * most + count)
        start += count
    return mx.array(rows), mx.array(places)
