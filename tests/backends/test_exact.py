"""Exact decoding on the real backends gives the text of the full head, whichever rows are active."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from tests.conftest import backend_params
from tests.tiny import KINDS, QUANTIZED
from vt_core import load

TOKENS = 24
RNG = np.random.default_rng(1)
PROMPTS = [[5, 17, 300, 42, 42, 980, 7], RNG.integers(3, 900, size=60).tolist(), [9]]

pytestmark = pytest.mark.parametrize("backend", backend_params())
every_kind = pytest.mark.parametrize("kind", KINDS)
SAMPLINGS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 3},
    "top_k": {"temperature": 1.3, "top_k": 7, "top_p": 0.8, "seed": 4},
    "min_p": {"temperature": 1.0, "min_p": 0.2, "seed": 5},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "bias": {"temperature": 0.7, "logit_bias": {11: 4.0, 1500: 6.0}, "seed": 6},
}


#: Float type of the run, and how weights are quantized.
FORMATS = [
    ("float32", None),
    ("bfloat16", None),
    ("float32", "int8"),
    ("bfloat16", "int8"),
    ("bfloat16", "int4"),
]


@pytest.fixture(scope="module")
def models(tiny):
    """``models(backend, kind, dtype, quantize)``: one with the full head and one with a reduced one."""

    @cache
    def make(backend, kind, dtype, quantize):
        options = {"backend": backend, "device": "cpu", "dtype": dtype, "quantize": quantize}
        return [load(tiny(kind, dtype)[1], head=head, **options) for head in ("full", "prealloc")]

    return make


@every_kind
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("dtype", "quantize"), FORMATS)
def test_exact_ids_equal_full_head_ids(backend, kind, dtype, quantize, sampling, models):
    if quantize is not None and (backend == "mlx" or kind in QUANTIZED):
        pytest.skip("PyTorch quantizes float weights")
    if (quantize is not None or kind in QUANTIZED) and sampling not in ("greedy", "sampled"):
        pytest.skip("greedy and sampled suffice for quantized weights")
    sampling = SAMPLINGS[sampling]
    full, model = models(backend, kind, dtype, quantize)
    model.forget_learned()
    model.decoder.head.set_static(range(0, 300, 2))
    rescued = 0
    for prompt in PROMPTS:  # the second is longer than Gemma's window; generation wraps it for the others
        expected = full.generate(prompt, max_tokens=TOKENS, **sampling)
        result = model.generate(prompt, max_tokens=TOKENS, **sampling)
        assert result.exact
        assert result.token_ids == expected.token_ids
        rescued += result.stats.rescued
    assert rescued >= 5
    assert model.decoder.head.vocabulary.learned_size > 0


@every_kind
@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
@pytest.mark.parametrize("head", ["full", "prealloc"])
def test_ids_do_not_depend_on_the_tokens_of_a_draft(backend, kind, head, sampling, models):
    full, reduced = models(backend, kind, "float32", None)
    repeating = [5, 17, 300, 42] * 6
    likely = dict.fromkeys(repeating, 20.0)  # so that the answer has n-grams of the prompt
    options = {"max_tokens": TOKENS, "logit_bias": likely, **SAMPLINGS[sampling]}
    expected = full.generate(repeating, draft="none", **options).token_ids
    for count in (1, 5, 16):
        result = (full if head == "full" else reduced).generate(repeating, draft_tokens=count, **options)
        assert result.token_ids == expected
        assert 0 < max(length for length, _, _ in result.stats.draft_lengths) <= count


def test_approximate_ids_are_active(backend, tiny):
    model = load(tiny("llama")[1], backend=backend, device="cpu")
    model.decoder.head.set_static(range(0, 300, 2))
    result = model.generate(PROMPTS[0], max_tokens=TOKENS, approximate=True)
    assert not result.exact and result.stats.verifications == 0
    assert set(result.token_ids) <= {*range(0, 300, 2), *PROMPTS[0]}


@every_kind
def test_rewind_restores_the_state_also_in_wrapped_windows(backend, kind, tiny):
    decoder = load(tiny(kind)[1], backend=backend, device="cpu").decoder
    assert kind != "gemma3" or len(PROMPTS[1]) > 16
    for prompt in PROMPTS:
        extra = RNG.integers(3, 900, size=42).tolist()
        reference, undone = [], []
        for rewinding, seen in ((False, reference), (True, undone)):
            slot = decoder.open()
            decoder.head.add([*prompt, *extra])
            decoder.prefill(slot, np.array(prompt))
            assert slot.can_rewind
            decoder.settle(slot)
            for index in range(0, 36, 6):
                if rewinding:
                    for wrong in extra[index : index + 5]:
                        decoder.step(slot, wrong)
                    decoder.rewind(slot, 5)
                for token in extra[index : index + 6]:
                    seen.append(decoder.logits(decoder.step(slot, token))[0])
                if rewinding:
                    decoder.settle(slot)
            decoder.close(slot)
            decoder.head.truncate()
        np.testing.assert_allclose(undone, reference, rtol=1e-5, atol=1e-5)


def test_request_from_another_thread(backend, tiny):
    model = load(tiny("llama")[1], backend=backend, device="cpu")
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(model.generate, PROMPTS[0], max_tokens=TOKENS).result()
    assert model.generate(PROMPTS[0], max_tokens=TOKENS).token_ids == elsewhere.token_ids


@every_kind
def test_requests_whose_threads_take_turns(backend, tiny, kind):
    """A step of one thread is the base of the next, which another thread asks for, for all requests."""
    model = load(tiny(kind)[1], backend=backend, device="cpu")
    options = {"max_tokens": TOKENS, "approximate": True}
    expected = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]
    streams = [model.stream(prompt, **options) for prompt in PROMPTS]
    found = [[] for _ in PROMPTS]
    pools = [ThreadPoolExecutor(1) for _ in PROMPTS]
    running = set(range(len(PROMPTS)))
    while running:
        for at in sorted(running):
            chunk = pools[at].submit(next, streams[at]).result()
            found[at] += [] if chunk.token_id is None else [chunk.token_id]
            if chunk.result is not None:
                running.remove(at)
    for pool in pools:
        pool.shutdown()
    assert [tuple(ids) for ids in found] == expected


@every_kind
def test_slot_that_another_thread_copied_and_cut(backend, tiny, kind):
    model = load(tiny(kind)[1], backend=backend, device="cpu")
    decoder = model.decoder
    decoder.head.set_static(range(900))
    text = np.array(PROMPTS[1])
    first = decoder.open()
    decoder.prefill(first, text)

    def prepare():
        slot = decoder.copy(first)
        decoder.cut(slot, len(text) - 20)
        return slot

    with ThreadPoolExecutor(1) as pool:
        slot = pool.submit(prepare).result()
    found = decoder.logits(decoder.prefill(slot, text[len(slot.text) :]))
    expected = decoder.logits(decoder.prefill(decoder.open(), text))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_failed_request_leaves_the_model_usable(backend, tiny, monkeypatch):
    model = load(tiny("llama")[1], backend=backend, device="cpu")
    model.decoder.head.set_static(range(0, 300, 2))
    expected = model.generate(PROMPTS[0], max_tokens=TOKENS).token_ids
    kept = model.decoder.head.vocabulary.ids.tolist()
    calls = 0
    original = model.decoder.read

    def failing(reads, **options):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise MemoryError("the device is full")
        return original(reads, **options)

    model.decoder.can_follow = False
    monkeypatch.setattr(model.decoder, "read", failing)
    with pytest.raises(MemoryError):
        model.generate(PROMPTS[0], max_tokens=TOKENS)
    assert model.decoder.head.vocabulary.ids.tolist() == kept
    monkeypatch.setattr(model.decoder, "read", original)
    assert model.generate(PROMPTS[0], max_tokens=TOKENS).token_ids == expected


def test_learned_ids_are_saved_for_the_next_session(backend, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("VT_CACHE", str(tmp_path))
    results = []
    for _ in range(2):
        model = load(tiny("llama")[1], backend=backend, device="cpu", learn=True)
        model.decoder.head.set_static([0, 1, 2])
        model.decoder.head.set_learned(model._learned.ids)
        results.append(model.generate(PROMPTS[0], max_tokens=TOKENS))
    assert results[0].token_ids == results[1].token_ids
    assert results[0].stats.rescued > 5 and results[1].stats.rescued == 0
