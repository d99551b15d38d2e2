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


@pytest.mark.parametrize("prompt", [1, 5, WINDOW, 20])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_the_last_tokens_of_a_read_are_cut_off(make, prompt):
    for read, wrong in [(2, 1), (5, 1), (5, 4), (12, 3), (12, 11), (12, 12)]:
        plain, rewound = make(), make()
        for cache in (plain, rewound):
            _read(cache, range(1, prompt + 1))
        log = CacheLog([rewound])
        log.record(read)
        _read(rewound, range(100, 100 + read))
        assert log.rewind(wrong) == 0
        if read > wrong:
            _read(plain, range(100, 100 + read - wrong))
        for token in range(200, 212):
            log.record(1)
            np.testing.assert_allclose(_read(rewound, [token]), _read(plain, [token]), atol=0.5)
        # What was read before and after it can still be taken back, all at once.
        log.rewind(12 + read - wrong)
        fresh = make()
        _read(fresh, range(1, prompt + 1))
        np.testing.assert_allclose(_read(rewound, [300]), _read(fresh, [300]), atol=0.5)


@pytest.mark.parametrize("tokens_kept", [1, 4, 100])
def test_states_are_kept_as_often_as_memory_allows(tokens_kept, monkeypatch):
    states, window = ArraysCache(size=1), RotatingKVCache(max_size=WINDOW)
    states[0] = mx.zeros((1024,))
    monkeypatch.setattr("vt_mlx.caches._STATES_BYTES", states[0].nbytes * 32 // tokens_kept)
    log = CacheLog([states, window])

    def read(value):
        log.record(1)
        states[0] = states[0] + value
        return _read(window, [value])

    for value in range(1, 21):
        read(value)
    before = _read_only(window)
    for value in range(21, 41):
        read(value)
    for wrong in (3, 2, 1, 9, 5):
        for value in range(100, 100 + wrong):
            read(value)
        lost = log.rewind(wrong)
        assert lost < tokens_kept or tokens_kept == 100
        held = 40 - lost
        assert states[0][0].item() == held * (held + 1) / 2
        for value in range(held + 1, 41):
            read(value)
    lost = log.rewind(20)
    for value in range(21 - lost, 21):
        read(value)
    assert states[0][0].item() == 210
    np.testing.assert_array_equal(_read_only(window), before)
    for token in range(500, 500 + WINDOW):
        seen = read(token)
    np.testing.assert_array_equal(seen, range(500, 500 + WINDOW))


def _read_only(cache):
    return np.sort(np.array(cache.keys)[0, 0, :, 0])


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
