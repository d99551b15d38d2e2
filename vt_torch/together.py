"""Reading tokens of several slots in one pass of a body, each slot with its own cache and length.

The tokens of all slots are laid one after the other into one sequence ``[1, T]`` with explicit positions, so
that embeddings, norms and linear layers run once for all. Only attention runs slot by slot: a
:class:`PackedCache` divides keys and values by slot and appends each part to that slot's own cache, and the
masks and the attention of each slot are those that transformers computes for that slot alone.

transformers finds attention and masks by a name in the model's configuration. The name is switched during a
packed read only, so a slot that is read alone runs as before.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vt_torch.growing import GrowingLayer
from vt_torch.rotary import rotates_by_length

#: Cache layers that depend on a slot's own tokens only. Recurrent layers run over the whole sequence.
_LAYERS = (DynamicLayer, GrowingLayer, DynamicSlidingWindowLayer, DummyLayer)


class _PackedLayer(CacheLayerMixin):
    """One layer of the caches of several slots. What transformers asks of a layer has one value a slot."""

    def __init__(self, layers: Sequence[Any], counts: Sequence[int]) -> None:
        super().__init__()
        self._layers, self._counts = layers, list(counts)
        self.is_sliding = layers[0].is_sliding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The slots' layers do this."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Append each slot's part of ``[1, heads, T, d]``. Returns the keys and the values of each slot."""
        parts = (states.split(self._counts, dim=-2) for states in (key_states, value_states))
        updated = [layer.update(*part) for layer, *part in zip(self._layers, *parts, strict=True)]
        keys, values = zip(*updated, strict=True)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        sizes = [layer.get_mask_sizes(count) for layer, count in zip(self._layers, self._counts, strict=True)]
        lengths, offsets = zip(*sizes, strict=True)
        return lengths, offsets

    def get_seq_length(self) -> tuple[int, ...]:
        return tuple(layer.get_seq_length() for layer in self._layers)

    def get_max_length(self) -> int:
        return -1


class PackedCache(Cache):
    """The caches of several slots, for one read of ``counts`` tokens each."""

    def __init__(self, caches: Sequence[DynamicCache], counts: Sequence[int]) -> None:
        layers = zip(*(cache.layers for cache in caches), strict=True)
        super().__init__(
            [each[0] if type(each[0]) is DummyLayer else _PackedLayer(each, counts) for each in layers]
        )


def _masks(ordinary: Callable) -> Callable:
    """A mask function that gives the number of tokens and the mask of each slot of a :class:`PackedCache`."""

    def masks(
        *,
        q_length: int,
        kv_length: Sequence[int],
        q_offset: Sequence[int],
        kv_offset: Sequence[int],
        **options: Any,
    ) -> list[tuple[int, torch.Tensor | None]]:
        result = []
        for length, start, first in zip(kv_length, q_offset, kv_offset, strict=True):
            count = first + length - start  # the last key is that of the last token
            mask = ordinary(q_length=count, kv_length=length, q_offset=start, kv_offset=first, **options)
            result.append((count, mask))
        return result

    return masks


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
    masks: list[tuple[int, torch.Tensor | None]],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The eager attention of a model's own file (soft-caps, sinks), for each slot."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    queries = query.split([count for count, _ in masks], dim=-2)
    parts = zip(queries, keys, values, masks, strict=True)
    outputs = [eager(module, *part, mask, **options)[0] for *part, (_, mask) in parts]
    return torch.cat(outputs, dim=1), None


def _sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
    masks: list[tuple[int, torch.Tensor | None]],
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention, for each slot. Query heads that share keys are laid out as further tokens.

    transformers repeats keys and values for each query head, or lets PyTorch do so. For 1500 tokens of
    SmolLM2 in bfloat16 on a CPU, that takes five times as long.
    """
    if options.get("softcap") is not None or options.get("position_bias") is not None:
        raise NotImplementedError("only plain attention is computed together")
    shared = keys[0].shape[1], -1
    queries = query[0].unflatten(0, shared).permute(2, 0, 1, 3).contiguous()
    parts = zip(queries.split([count for count, _ in masks]), keys, values, masks, strict=True)
    outputs = [_attend(rows, key, value, mask, scaling) for rows, key, value, (_, mask) in parts]
    return torch.cat(outputs).flatten(1, 2)[None], None


def _attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one slot's tokens.

    Args:
        queries: ``[count, groups, n, size]`` of ``n`` heads that share the keys of a group.
        keys: ``[1, groups, length, size]``.
        values: the same shape.
        mask: ``[1, 1, count, length]``; None: each token sees itself and those before it.
        scaling: factor of the products; None for that of PyTorch.

    Returns:
        ``[count, groups, n, size]``.
    """
    count, *heads, _ = queries.shape
    if count == 1:
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
    queries = queries.permute(1, 2, 0, 3)
    if mask is None:
        queries = queries.flatten(0, 1)[None]
        output = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scaling, enable_gqa=True
        )
    else:
        queries, mask = queries.flatten(1, 2)[None], mask.repeat(1, 1, heads[1], 1)
        output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
    return output.reshape(*heads, count, -1).permute(2, 0, 1, 3)


#: Names of the attention of packed reads, by the name of the ordinary one.
_PACKED = {"sdpa": "vt_packed_sdpa", "eager": "vt_packed_eager"}
for _name, _function in ("sdpa", _sdpa_attention), ("eager", _eager_attention):
    ALL_ATTENTION_FUNCTIONS.register(_PACKED[_name], _function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_PACKED[_name], _masks(ALL_MASK_ATTENTION_FUNCTIONS[_name]))


class Together:
    """Packed reads of one model's body."""

    def __init__(self, model: PreTrainedModel) -> None:
        """
        Args:
            model: a body as :func:`vt_torch.body.load_body` loads it.
        """
        self._model = model
        configs = (module.config for module in model.modules() if hasattr(module, "config"))
        self._configs = [*{id(config): config for config in configs}.values()]
        can_switch = all(config._attn_implementation in _PACKED for config in self._configs)
        self._knows_model = can_switch and not any(map(rotates_by_length, model.modules()))

    def divides(self, caches: Sequence[DynamicCache]) -> bool:
        """Whether attention runs slot by slot in this model, and these caches are divided by slot."""
        return self._knows_model and all(type(layer) in _LAYERS for cache in caches for layer in cache.layers)

    def run(
        self,
        caches: Sequence[DynamicCache],
        lengths: Sequence[int],
        index: torch.Tensor,
        counts: Sequence[int],
    ) -> torch.Tensor:
        """Read tokens of several slots.

        Args:
            caches: one for each slot; the tokens are appended to it.
            lengths: how many tokens each slot has read before.
            index: tokens of all slots ``[1, T]``, as rows of the embedding module's table.
            counts: how many of them belong to each slot.

        Returns:
            The logits that the model gives.
        """
        ranges = zip(lengths, counts, strict=True)
        positions = np.concatenate([np.arange(length, length + count) for length, count in ranges])
        with self._packed_attention():
            return self._model(
                input_ids=index,
                position_ids=torch.from_numpy(positions)[None].to(index.device),
                past_key_values=PackedCache(caches, counts),
                use_cache=True,
                **_all_positions(type(self._model).forward),
            ).logits[0]

    @contextmanager
    def _packed_attention(self) -> Iterator[None]:
        ordinary = [config._attn_implementation for config in self._configs]
        try:
            for config, name in zip(self._configs, ordinary, strict=True):
                # A plain name would also be given to the configurations inside this one.
                config._attn_implementation = {"": _PACKED[name]}
            yield
        finally:
            for config, name in zip(self._configs, ordinary, strict=True):
                config._attn_implementation = {"": name}


@functools.cache
def _all_positions(forward: Callable) -> dict[str, Any]:
    """Options of a forward method that make it compute all positions of a read: Gemma 4 drops those before
    the last ones within its layers, and cuts their masks.
    """
    is_known = "logits_to_keep" in inspect.signature(forward).parameters
    return {"logits_to_keep": slice(None)} if is_known else {}
