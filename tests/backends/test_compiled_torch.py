"""Steps of one token that run through torch.compile give the ids of the plain model."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

from vt_core import load  # noqa: E402
from vt_core.errors import BackendError, SessionError  # noqa: E402
from vt_torch import compiled, products  # noqa: E402

KINDS = ["llama", "gemma3"]  # full attention; a window of 16 tokens
PROMPT = [5, 17, 300, 42, 42, 980, 7]
SAMPLINGS = [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}, {"approximate": True}]


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces, and runs what it traced without a compiler; caches begin with 16 tokens."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled, "_FIRST_CAPACITY", 16)


@pytest.fixture
def models(tiny):
    def make(kind):
        options = {"backend": "torch", "device": "cpu", "dtype": "float32"}
        found = [load(tiny(kind)[1], compile=how, **options) for how in (False, True)]
        for model in found:
            model.set_static(range(0, 300, 2))
        return found

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_plain_model(kind, models, traced):
    plain, model = models(kind)
    for sampling in SAMPLINGS:
        expected = plain.generate(PROMPT, max_tokens=40, **sampling)
        result = model.generate(PROMPT, max_tokens=40, **sampling)
        assert result.token_ids == expected.token_ids
        assert result.stats.rescued or "approximate" in sampling
    texts = [model.generate_many([PROMPT, [9, 8]], max_tokens=12) for model in (plain, model)]
    first, second = ({index: result.token_ids for index, result in text} for text in texts)
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_sessions_are_those_of_the_plain_model(kind, models, traced, tmp_path):
    plain, model = models(kind)
    scores = [each.score(PROMPT * 4, [7, 8, 9]).log_probs for each in (plain, model)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    answers = []
    for each in (plain, model):
        session = each.session(max_tokens=8)
        session.send("abc def ghi jkl mno")
        session.save(tmp_path / "talk.safetensors")
        session.send("pqr stu")
        again = each.load_session(tmp_path / "talk.safetensors")
        result = again.send("pqr stu")
        assert result.stats.cached_tokens > 0 or each is plain
        assert again.messages == session.messages
        answers.append(result.token_ids)
    assert answers[0] == answers[1]
    with pytest.raises(SessionError, match="saved with compiled True, and this model has None"):
        plain.load_session(tmp_path / "talk.safetensors")


def test_exact_ids_are_those_of_the_full_head_without_onednn(tiny, traced, monkeypatch):
    kernel = products.Kernel(products.without_onednn, torch.bfloat16, 1 << 20)
    monkeypatch.setattr("vt_torch.decoder.kernels_of", lambda *_: {1: kernel})
    options = {"backend": "torch", "device": "cpu", "dtype": "bfloat16", "compile": True}
    full, model = (load(tiny("llama", "bfloat16")[1], head=head, **options) for head in ("full", "prealloc"))
    model.set_static(range(0, 300, 2))
    for sampling in SAMPLINGS[:2]:
        expected = full.generate(PROMPT, max_tokens=24, **sampling).token_ids
        assert model.generate(PROMPT, max_tokens=24, **sampling).token_ids == expected
    assert torch.backends.mkldnn.enabled


@pytest.mark.slow
def test_ids_of_compiled_kernels_are_those_of_the_plain_model(models):
    plain, model = models("llama")
    for sampling in SAMPLINGS:
        expected = plain.generate(PROMPT, max_tokens=24, **sampling).token_ids
        assert model.generate(PROMPT, max_tokens=24, **sampling).token_ids == expected


def test_layer_keeps_its_tokens_when_it_grows_and_loses_those_taken_back():
    layer = compiled.FixedLayer(4)
    tokens = torch.arange(6.0).reshape(1, 1, 6, 1)
    layer.update(tokens[:, :, :3], tokens[:, :, :3])
    layer.crop(-1)
    layer.enlarge(8)
    layer.update(tokens[:, :, 5:], tokens[:, :, 5:])
    assert layer.keys.flatten().tolist() == [0, 1, 5, 0, 0, 0, 0, 0]
    assert layer.get_seq_length() == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mamba", {}, "cannot run with --compile: its layers keep states"),
        ("llama", {"quantize": "int8"}, "--compile is for float weights"),
    ],
)
def test_what_cannot_be_compiled_is_refused(kind, options, message, tiny):
    with pytest.raises(BackendError, match=message):
        load(tiny(kind)[1], backend="torch", device="cpu", compile=True, **options)


def test_compiling_needs_a_compiler(tiny, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"needs a C\+\+ compiler, and there is no g\+\+ or clang\+\+"):
        load(tiny("llama")[1], backend="torch", device="cpu", compile=True)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="needs Triton"):
        compiled.check_compiler(torch.device("cuda"))
    with pytest.raises(BackendError, match="not for mps"):
        compiled.check_compiler(torch.device("mps"))


def test_mlx_does_not_compile(tiny):
    pytest.importorskip("mlx_lm")
    with pytest.raises(BackendError, match="--compile is for PyTorch"):
        load(tiny("llama")[1], backend="mlx", compile=True)
