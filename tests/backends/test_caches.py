"""After a rewind, each of mlx-lm's caches is as if the tokens had never been read."""

from __future__ import annotations

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from mlx_lm.models.cache import (  # noqa: E402
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    _BaseCache,
)

from vt_mlx.caches import CacheLog  # noqa: E402

DIMENSIONS = 64  # a group of a quantized cache
WINDOW = 8
CACHES = {
    "plain": KVCache,
    "quantized": QuantizedKVCache,
    "rotating": lambda: RotatingKVCache(max_size=WINDOW),
    "rotating, first kept": lambda: RotatingKVCache(max_size=WINDOW, keep=2),
    "chunked": lambda: ChunkedKVCache(WINDOW),
    "concatenating": ConcatenateKVCache,
    "list": lambda: CacheList(KVCache(), RotatingKVCache(max_size=WINDOW)),
}


def _read(cache, values):
    """Run tokens of these values through a cache. Returns what attention would see."""
    if isinstance(cache, CacheList):
        return np.concatenate([_read(part, values) for part in cache.caches])
    if hasattr(cache, "maybe_trim_front"):
        cache.maybe_trim_front()
    rows = mx.array(list(values), dtype=mx.float32)[None, None, :, None] * mx.ones((DIMENSIONS,))
    keys, _ = cache.update_and_fetch(rows, -rows)
    if isinstance(cache, QuantizedKVCache):
        keys = mx.dequantize(*keys, group_size=cache.group_size, bits=cache.bits)
    # A ring buffer has no order.
    return np.sort(np.array(keys)[0, 0, :, 0])


@pytest.mark.parametrize("prompt", [1, 5, WINDOW, 20])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_rewind_restores_the_cache(make, prompt):
    rng = np.random.default_rng(prompt)
    plain, rewound = make(), make()
    for cache in (plain, rewound):
        _read(cache, range(1, prompt + 1))
    log = CacheLog([rewound])
    assert log.can_rewind
    for token in range(100, 140):
        log.settle()
        wrong = int(rng.integers(0, 5))
        for other in range(wrong):
            log.record(1)
            _read(rewound, [500 + other])
        log.rewind(wrong)
        log.record(1)
        np.testing.assert_allclose(_read(rewound, [token]), _read(plain, [token]), atol=0.5)


def test_rewind_of_array_caches():
    cache = ArraysCache(size=2)
    cache[0], cache[1] = mx.array([1.0]), mx.array([2.0])
    log = CacheLog([cache])
    log.record(1)
    cache[0] = mx.array([9.0])
    log.rewind(1)
    assert cache[0].item() == 1.0 and cache[1].item() == 2.0
    with pytest.raises(AssertionError, match="1 tokens to take back, 0 recorded"):
        log.rewind(1)


def test_unknown_caches_cannot_rewind():
    class Other(_BaseCache):
        pass

    assert not CacheLog([KVCache(), Other()]).can_rewind
