"""Cache layers that grow in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

#: Tokens for which a layer that grows makes room at once.
_ROOM = 64


class _Grown:
    """A tensor ``[..., length, size]`` at the beginning of a buffer with room after it."""

    def __init__(self) -> None:
        self._buffer: Any = None
        self._tensor: Any = None
        self.least = 0  #: length for which a new buffer has room at least

    def append(self, tensor: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """``tensor`` with ``new`` after it. Written into the buffer if ``tensor`` is the last result or its
        beginning; the rest of that result is lost then.
        """
        start = 0 if tensor.dim() < new.dim() else tensor.shape[-2]
        end = start + new.shape[-2]
        if not self._holds(tensor) or end > self._buffer.shape[-2]:
            capacity = -(-max(end, self.least) // _ROOM) * _ROOM
            buffer = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
            if start:
                buffer.narrow(-2, 0, start).copy_(tensor)
            self._buffer = buffer
        self._buffer.narrow(-2, start, new.shape[-2]).copy_(new)
        self._tensor = self._buffer.narrow(-2, 0, end)
        return self._tensor

    def _holds(self, tensor: torch.Tensor) -> bool:
        if self._buffer is None:
            return False
        return tensor is self._tensor or tensor.data_ptr() == self._buffer.data_ptr()


class GrowingLayer(DynamicLayer):
    """transformers' layer of full attention, except that a step writes its tokens after those of the past.
    ``DynamicLayer`` copies all of them: with 1500 tokens of SmolLM2 in float32, a fifth of a step of 8 slots.

    A shallow copy shares the memory: only one of both may go on.
    """

    keys: Any
    values: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._grown = _Grown(), _Grown()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._grown[0].append(self.keys, key_states)
        self.values = self._grown[1].append(self.values, value_states)
        return self.keys, self.values


def make_room(cache: DynamicCache, length: int) -> None:
    """Let the layers of a cache that grow make room for a text of ``length`` tokens at once. A prompt that is
    read in pieces would be copied with each piece otherwise.
    """
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            for grown in layer._grown:
                grown.least = length


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for one text."""
    cache = DynamicCache(config=config)
    # Sliding layers stay: a copy of a window costs as much as keeping track of a buffer.
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
