"""A layer that grows in place holds what transformers' own layer holds."""

from __future__ import annotations

from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import DynamicCache, LlamaConfig  # noqa: E402
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer  # noqa: E402

from vt_torch.caches import cache_bytes, can_take_back, export_cache, restore_cache, take_back  # noqa: E402
from vt_torch.growing import GrowingLayer, make_room, new_cache  # noqa: E402

CONFIG = LlamaConfig(num_hidden_layers=2)


def _states(count, seed):
    rows = torch.arange(seed, seed + count, dtype=torch.float32)[:, None] * torch.ones(8)
    return torch.stack([rows, -rows])[None]


def _update(caches, count, seed):
    """The same new keys and values in each cache; returns what each layer gives."""
    keys = _states(count, seed)
    return [
        [cache.update(keys + at, keys[..., :4] - at, at) for at in range(len(cache.layers))]
        for cache in caches
    ]


def _assert_equal(caches):
    growing, plain = ([(layer.keys, layer.values) for layer in cache.layers] for cache in caches)
    torch.testing.assert_close(growing, plain, rtol=0, atol=0)


def _both():
    return [new_cache(CONFIG), DynamicCache(config=CONFIG)]


OPERATIONS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 150)),
    st.tuples(st.sampled_from(["crop", "take back"]), st.integers(1, 5)),
    st.tuples(st.sampled_from(["copy", "save"]), st.just(0)),
)


@given(st.lists(OPERATIONS, max_size=12))
def test_growing_layers_equal_plain_layers(operations):
    caches = _both()
    _update(caches, 7, seed=1000)
    for at, (name, count) in enumerate(operations):
        count = min(count, caches[0].get_seq_length() - 1)
        if name == "update":
            growing, plain = _update(caches, count or 1, seed=1000 * at)
            torch.testing.assert_close(growing, plain, rtol=0, atol=0)
        elif name == "crop":
            [cache.crop(-count) for cache in caches]
        elif name == "take back" and count:
            [take_back(cache, count) for cache in caches]
        elif name == "copy":
            before = caches
            caches = deepcopy(caches)
            _update(before, 3, seed=1)  # must not change the copies
        elif name == "save":
            saved = [export_cache(cache) for cache in caches]
            assert saved[0][1] == saved[1][1]
            caches = _both()
            for cache, parts in zip(caches, reversed(saved), strict=True):
                restore_cache(cache, *parts, torch.device("cpu"))
        _assert_equal(caches)


def test_tokens_can_be_taken_back():
    assert can_take_back(new_cache(CONFIG))


def test_a_step_writes_in_place():
    cache = new_cache(CONFIG)
    _update([cache], 60, seed=0)
    places = set()
    for step in range(80):
        _update([cache], 1, seed=step)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 3


def test_only_full_attention_grows():
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types, config.sliding_window = ["sliding_attention", "full_attention"], 8
    assert [type(layer) for layer in new_cache(config).layers] == [DynamicSlidingWindowLayer, GrowingLayer]
    assert not any(type(layer) is DynamicLayer for layer in new_cache(CONFIG).layers)


def test_cache_bytes_count_room():
    cache = new_cache(CONFIG)
    _update([cache], 60, seed=0)
    assert cache_bytes(cache) == 2 * 64 * 2 * (8 + 4) * 4


def test_prompt_in_pieces_is_not_copied_where_room_was_made():
    cache, places = new_cache(CONFIG), set()
    make_room(cache, 300)
    for piece in range(3):
        _update([cache], 100, seed=piece)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1 and cache.layers[0].keys.shape[-2] == 300
