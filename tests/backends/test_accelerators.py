"""Every path of a decoder on CUDA (marked ``cuda``) and on Metal (marked ``metal``), where there is one, and
on a CPU, so that the tests themselves are tested.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest

from vt_core import load

TOKENS = 24
RNG = np.random.default_rng(1)
PROMPTS = [[5, 17, 300, 42, 42, 980, 7], RNG.integers(3, 900, size=60).tolist(), [9]]
#: Tied; untied; tied with a scaled embedding and sliding windows.
KINDS = ["llama", "qwen2", "gemma3"]
SAMPLINGS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 3},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "logit_bias": {11: 4.0}},
}


def _devices():
    torch_is_there, mlx_is_there = (
        importlib.util.find_spec(name) is not None for name in ("torch", "mlx_lm")
    )
    has_cuda = has_mps = has_metal = False
    if torch_is_there:
        import torch

        has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if mlx_is_there:
        import mlx.core as mx

        has_metal = mx.metal.is_available()
    for backend, device, is_there, mark in (
        ("torch", "cuda", has_cuda, pytest.mark.cuda),
        ("torch", "mps", has_mps, pytest.mark.metal),
        ("mlx", "gpu", has_metal, pytest.mark.metal),
        ("torch", "cpu", torch_is_there, ()),
        ("mlx", "cpu", mlx_is_there, ()),
    ):
        missing = pytest.mark.skipif(not is_there, reason=f"no {device} for {backend}")
        yield pytest.param(
            (backend, device), marks=[missing, *([mark] if mark else [])], id=f"{backend}-{device}"
        )


pytestmark = pytest.mark.parametrize("where", list(_devices()))


@pytest.fixture(scope="module")
def models(tiny):
    """``models(where, kind, dtype)``: one with the full head, and one whose head holds few rows."""

    @cache
    def make(where, kind, dtype="float32"):
        backend, device = where
        options = {"backend": backend, "device": device, "dtype": dtype}
        full, model = (load(tiny(kind, dtype)[1], head=head, **options) for head in ("full", "prealloc"))
        model.set_static(range(0, 300, 2))
        return full, model

    yield make
    make.cache_clear()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_ids_equal_full_head_ids(where, kind, dtype, sampling, models):
    if where[1] == "cpu" and (kind != "llama" or dtype != "float32"):
        pytest.skip("tested elsewhere on a CPU")
    full, model = models(where, kind, dtype)
    model.forget_learned()
    rescued = 0
    for prompt in PROMPTS:  # the second is longer than Gemma's window
        expected = full.generate(prompt, max_tokens=TOKENS, **SAMPLINGS[sampling])
        result = model.generate(prompt, max_tokens=TOKENS, **SAMPLINGS[sampling])
        assert result.exact and result.token_ids == expected.token_ids
        rescued += result.stats.rescued
    assert rescued >= 5
    assert result.stats.device.startswith(where[1])


@pytest.mark.parametrize("head", ["split", "rebuild"])
def test_other_heads_give_the_same_ids(where, head, models, tiny):
    backend, device = where
    full, _ = models(where, "llama")
    model = load(tiny("llama")[1], backend=backend, device=device, dtype="float32", head=head)
    model.set_static(range(0, 300, 2))
    assert model.generate(PROMPTS[0], max_tokens=TOKENS).token_ids == (
        full.generate(PROMPTS[0], max_tokens=TOKENS).token_ids
    )


def test_drafted_ids_are_those_of_single_steps(where, models):
    full, model = models(where, "llama")
    repeating = [5, 17, 300, 42] * 6
    expected = full.generate(repeating, max_tokens=TOKENS)
    result = model.generate(repeating, max_tokens=TOKENS, draft="ngram")
    assert result.token_ids == expected.token_ids


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_requests_that_run_together_write_what_they_write_alone(where, kind, models):
    full, model = models(where, kind)
    expected = [full.generate(prompt, max_tokens=TOKENS).token_ids for prompt in PROMPTS]
    found = dict(model.generate_many(PROMPTS, max_tokens=TOKENS))
    assert [found[index].token_ids for index in range(len(PROMPTS))] == expected


def test_saved_session_goes_on(where, models, tmp_path):
    _, model = models(where, "llama")
    texts = []
    for saves in (False, True):
        model.forget_learned()
        session = model.session(max_tokens=8)
        session.send("abc def ghi")
        if saves:
            session.save(tmp_path / "talk.safetensors")
            session = model.load_session(tmp_path / "talk.safetensors")
        result = session.send("jkl mno")
        assert result.stats.cached_tokens > 0
        texts.append(result.token_ids)
    assert texts[0] == texts[1]


def test_scores_equal_those_of_the_full_head(where, models):
    full, model = models(where, "qwen2")
    prompt, continuation = PROMPTS[1][:20], PROMPTS[1][20:30]
    expected, found = (each.score(prompt, continuation).log_probs for each in (full, model))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_multiplied_again_equal_those_of_the_whole_head(where, models):
    full, model = models(where, "llama", "bfloat16")
    ids = np.array([3, 700, 1999, 44])
    for states in model.decoder.states(np.array(PROMPTS[1]), 0):
        found = model.decoder.row_logits(states[-1:], ids)
        steps = full.decoder.head.logits(states[-1:])
        whole = full.decoder._to_host(steps)[0]
        np.testing.assert_array_equal(found, whole[ids])


def test_grammar_is_followed(where, models):
    pytest.importorskip("llguidance")
    _, model = models(where, "llama")
    result = model.generate(PROMPTS[0], max_tokens=TOKENS, regex="[a-c]{3} [a-c]{3}")
    assert result.finish_reason == "length" or len(result.text) == 7


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_quantized_while_loading(where, quantize, tiny):
    backend, device = where
    if backend == "mlx" or (device, quantize) == ("mps", "int4"):
        pytest.skip("PyTorch quantizes while loading; 4 bits not on MPS")
    options = {"backend": backend, "device": device, "dtype": "bfloat16", "quantize": quantize}
    full, model = (load(tiny("llama", "bfloat16")[1], head=head, **options) for head in ("full", "prealloc"))
    model.set_static(range(0, 300, 2))
    expected = full.generate(PROMPTS[0], max_tokens=TOKENS)
    assert model.generate(PROMPTS[0], max_tokens=TOKENS).token_ids == expected.token_ids


def test_compiled_steps_write_the_same_ids(where, models, tiny):
    backend, device = where
    if backend == "mlx" or device != "cuda":
        pytest.skip("compiled steps are tested elsewhere on a CPU")
    full, _ = models(where, "llama")
    options = {"backend": backend, "device": device, "dtype": "float32"}
    model = load(tiny("llama")[1], compile=True, **options)
    for prompt in PROMPTS:
        expected = full.generate(prompt, max_tokens=TOKENS)
        assert model.generate(prompt, max_tokens=TOKENS).token_ids == expected.token_ids


def test_closed_model_gives_its_memory_back(where, tiny):
    backend, device = where
    if device != "cuda":
        pytest.skip("only CUDA's allocator is asked")
    import torch

    before = torch.cuda.memory_allocated()
    with load(tiny("llama")[1], backend=backend, device=device) as model:
        model.generate(PROMPTS[0], max_tokens=4)
        assert torch.cuda.memory_allocated() > before
        assert model.decoder.peak_memory() > 0
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
