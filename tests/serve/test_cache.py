"""The prompt cache: which slot a prompt takes, what is kept, and that texts stay the same."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from tests.conftest import backend_params
from tests.serve.running import running, tiny_model
from vt_core import load
from vt_core.decode.options import request_options
from vt_core.serve.cache import PromptCache


@pytest.fixture(scope="module", params=backend_params())
def model(request, tiny):
    with load(tiny("llama")[1], backend=request.param, device="cpu", dtype="float32") as model:
        yield model


PROMPT = list(range(20, 60))


def answer(model, cache, prompt):
    """The result of a prompt whose slot comes from the cache and goes there."""
    ids = np.array(prompt)
    slot = cache.take(ids)
    for chunk in model.run(ids, request_options(max_tokens=5), slot):
        result = chunk.result
    if slot is not None:
        cache.put(slot)
    return result


def test_a_conversation_goes_on_from_its_slot(model):
    cache = PromptCache(model, 1 << 30)
    first = answer(model, cache, PROMPT)
    longer = [*PROMPT, *first.token_ids, 7, 8, 9]
    second = answer(model, cache, longer)
    assert (first.stats.cached_tokens, second.stats.cached_tokens) == (0, len(PROMPT) + 4)
    assert second.token_ids == model.generate(longer, max_tokens=5).token_ids
    assert len(cache) == 1 and cache.nbytes > 0


def test_a_common_beginning_is_copied(model):
    cache = PromptCache(model, 1 << 30)
    answer(model, cache, PROMPT * 2)
    other = [*PROMPT[:30], 1, 2, 3]
    result = answer(model, cache, other)
    assert result.stats.cached_tokens == 30 and len(cache) == 2
    assert result.token_ids == model.generate(other, max_tokens=5).token_ids
    again = answer(model, cache, PROMPT * 2)
    assert again.stats.cached_tokens == 79 and len(cache) == 2


def test_short_or_no_common_beginnings_start_anew(model):
    cache = PromptCache(model, 1 << 30)
    answer(model, cache, PROMPT)
    assert answer(model, cache, [*PROMPT[:5], 3, 4]).stats.cached_tokens == 0
    assert answer(model, cache, [3, 4, 5]).stats.cached_tokens == 0
    assert len(cache) == 3


def test_the_least_recently_used_slots_go_first(model):
    cache = PromptCache(model, 1 << 30)
    answer(model, cache, PROMPT)
    one = cache.nbytes
    cache = PromptCache(model, int(2.5 * one))
    for first in (1, 2, 3):
        answer(model, cache, [first, *PROMPT])
    assert len(cache) == 2 and cache.nbytes <= 2.5 * one
    assert answer(model, cache, [2, *PROMPT]).stats.cached_tokens == 40
    assert answer(model, cache, [1, *PROMPT]).stats.cached_tokens == 0
    assert answer(model, cache, [2, *PROMPT]).stats.cached_tokens == 40
    assert answer(model, cache, [3, *PROMPT]).stats.cached_tokens == 0


def test_a_slot_above_the_limit_is_not_kept(model):
    cache = PromptCache(model, 100)
    answer(model, cache, PROMPT)
    assert len(cache) == 0
    off = PromptCache(model, 0)
    assert off.take(np.array(PROMPT)) is None


def test_a_failed_request_keeps_nothing(model, monkeypatch):
    cache = PromptCache(model, 1 << 30)

    def fail(*_, **__):
        raise MemoryError

    ids = np.array(PROMPT)
    slot = cache.take(ids)
    with monkeypatch.context() as patched:
        patched.setattr(model.decoder, "verify", fail)
        with pytest.raises(MemoryError):
            list(model.run(ids, request_options(max_tokens=5), slot))
    cache.put(slot)
    assert len(cache) == 0


def test_usage_tells_cached_tokens(tiny):
    with running({"tiny": tiny_model(tiny)}) as server:
        body = {"messages": [{"role": "user", "content": "the cat sat on a mat"}], "max_tokens": 4}

        def ask():
            reply = httpx.post(f"{server.api}/chat/completions", json=body).json()
            text = reply["choices"][0]["message"]["content"]
            return (
                text,
                reply["usage"]["prompt_tokens_details"]["cached_tokens"],
                reply["usage"]["prompt_tokens"],
            )

        text, cached, prompt = ask()
        assert (cached, ask()) == (0, (text, prompt - 1, prompt))
        body["messages"] += [{"role": "assistant", "content": text}, {"role": "user", "content": "dog"}]
        assert ask()[1] >= prompt
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "vt_cache_bytes 0" not in metrics
