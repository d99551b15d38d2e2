"""Every architecture that vt claims to run, small and random, against the stock framework on its files."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks import stock
from converters import convert
from tests.conftest import backend_params
from tests.tiny import ARCHITECTURES, KINDS, NEUTRAL, PADDING_ROWS, stock_source, write_model
from vt_core import load
from vt_core.errors import ModelError
from vt_core.sampling import Sampler, SamplerSettings

TOKENS = 24
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 900, 40).tolist(), [5, 17, 300, 42]]  # the first is longer than the windows of 16
STATIC = range(0, 600, 2)
SAMPLING = {"temperature": 1.1, "top_p": 0.9, "seed": 7}

pytestmark = [
    pytest.mark.parametrize("backend", backend_params()),
    pytest.mark.parametrize("kind", [*KINDS, *ARCHITECTURES]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``models(backend, kind)``: stock framework's model, and model directory."""

    @cache
    def make(backend, kind):
        root = tmp_path_factory.mktemp(kind)
        source = write_model(root / "source", kind)
        if (backend, kind) == ("mlx", "gpt_oss"):
            _lay_out_for_mlx(source / "model.safetensors")
        directory = convert(source, root / "vt", progress=False)
        return stock.LOAD[backend](stock_source(source, backend), "float32"), directory

    return make


def test_greedy_ids_are_the_stock_frameworks_with_every_head(backend, kind, models):
    original, directory = models(backend, kind)
    expected = [stock.GENERATE[backend](original, prompt, TOKENS, eos=[0, 2])[0] for prompt in PROMPTS]
    assert len({token for ids in expected for token in ids}) >= 8
    for head in ("full", "prealloc", "split", "rebuild"):
        model = load(directory, backend=backend, head=head, device="cpu", dtype="float32")
        rescued = 0
        for prompt, ids in zip(PROMPTS, expected, strict=True):
            model.decoder.head.set_static(STATIC)
            result = model.generate(prompt, max_tokens=TOKENS)
            assert list(result.token_ids) == ids, head
            rescued += result.rescued
            assert result.vocab_rows >= 1000
            if head != "full":
                active = result.static_rows + result.learned_rows + result.dynamic_rows
                assert active < result.vocab_rows / 5
                model.decoder.head.set_static(ids)
                approximate = model.generate(prompt, max_tokens=TOKENS, approximate=True)
                assert list(approximate.token_ids) == ids, head
        assert rescued > 0 or head == "full"


def test_sampled_ids_are_those_of_the_stock_frameworks_logits(backend, kind, models):
    original, directory = models(backend, kind)
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    model.decoder.head.set_static(STATIC)
    ids = list(model.generate(PROMPTS[1], max_tokens=TOKENS, **SAMPLING).token_ids)
    assert ids == _sampled(backend, original, PROMPTS[1])


def test_what_is_particular_matters(backend, kind, models, tmp_path):
    """Without it the texts would be others: so the tests above do look at it."""
    if kind not in NEUTRAL:
        pytest.skip("nothing that a configuration could take away")
    original, directory = models(backend, kind)
    changed = tmp_path / "changed"
    shutil.copytree(directory, changed)
    config = json.loads((changed / "config.json").read_text())
    config.get("text_config", config).update(NEUTRAL[kind])
    (changed / "config.json").write_text(json.dumps(config))
    _forget_sizes(changed / "vt.json")
    model = load(changed, backend=backend, head="full", device="cpu", dtype="float32")
    texts = [
        list(model.generate(PROMPTS[1], max_tokens=TOKENS, **options).token_ids) for options in ({}, SAMPLING)
    ]
    greedy = stock.GENERATE[backend](original, PROMPTS[1], TOKENS, eos=[0, 2])[0]
    assert texts != [greedy, _sampled(backend, original, PROMPTS[1])]


def test_a_long_prompt_may_run_in_pieces(backend, kind, models, monkeypatch):
    directory = models(backend, kind)[1]
    model = load(directory, backend=backend, device="cpu", dtype="float32")
    whole = model.generate(PROMPTS[0], max_tokens=8).token_ids
    monkeypatch.setattr(f"vt_{backend}.decoder.PREFILL_TOKENS", 13)
    assert model.generate(PROMPTS[0], max_tokens=8).token_ids == whole


@pytest.mark.parametrize("piece", [13, 2048])
def test_scores_are_those_of_the_stock_frameworks_log_softmax(backend, kind, piece, models, monkeypatch):
    original, directory = models(backend, kind)
    model = load(directory, backend=backend, device="cpu", dtype="float32", tile_bytes=20_000)
    model.decoder.head.set_static(STATIC)
    monkeypatch.setattr(f"vt_{backend}.decoder.PREFILL_TOKENS", piece)
    monkeypatch.setattr(f"vt_{backend}.decoder.POSITIONS", 8)
    prompt, written = PROMPTS[0], list(model.generate(PROMPTS[0], max_tokens=6).token_ids)
    texts = [(prompt[:5], prompt[5:]), (prompt, written), ([9], [3])]
    for (given, text), score in zip(texts, model.score_each(texts), strict=True):
        logits = stock.text_logits(backend, original, given, text)
        expected = stock.log_softmax(logits)[range(len(text)), text]
        np.testing.assert_allclose(score.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert score.token_ids == tuple(text)
        assert score.greedy == tuple(logits.argmax(axis=1) == text)
        assert score.is_greedy == (text is written)


def test_eight_bits_run_too(backend, kind, models):
    if backend == "mlx":
        pytest.skip("quantising while loading is PyTorch's")
    directory = models(backend, kind)[1]
    options = {"backend": backend, "device": "cpu", "dtype": "float32", "quantize": "int8"}
    if kind == "gpt2":
        with pytest.raises(ModelError, match="GPT2LMHeadModel has no linear layers that vt could quantise"):
            load(directory, **options)
        return
    full, model = load(directory, head="full", **options), load(directory, **options)
    model.decoder.head.set_static(STATIC)
    expected = full.generate(PROMPTS[1], max_tokens=TOKENS).token_ids
    assert model.generate(PROMPTS[1], max_tokens=TOKENS).token_ids == expected


def _sampled(backend, original, prompt):
    """Ids that the sampler draws from the stock framework's logits."""
    context, ids = list(prompt), []
    tokens = len(stock.next_logits(backend, original, prompt)) - PADDING_ROWS
    sampler = Sampler(SamplerSettings(**SAMPLING), tokens)
    for position in range(TOKENS):
        logits = stock.next_logits(backend, original, context)[:tokens]
        ids.append(sampler.choose(logits, np.arange(len(logits)), position))
        context.append(ids[-1])
        if ids[-1] in (0, 2):
            break
    return ids


def _forget_sizes(manifest):
    """Let a model directory's config.json have another size than was noted."""
    content = json.loads(manifest.read_text())
    content["files"]["config.json"] = (manifest.parent / "config.json").stat().st_size
    manifest.write_text(json.dumps(content))


def _lay_out_for_mlx(file):
    """Experts in the layout of converted checkpoints: mlx-lm reads no other but the published MXFP4 one."""
    tensors = {}
    for name, tensor in load_file(file).items():
        if "experts.gate_up_proj" in name:
            bias = name.endswith("_bias")
            for start, part in ((0, "gate_proj"), (1, "up_proj")):
                piece = tensor[..., start::2] if bias else tensor[..., start::2].transpose(1, 2)
                tensors[f"{name.partition('gate_up_proj')[0]}{part}.{'bias' if bias else 'weight'}"] = piece
        elif name.endswith("experts.down_proj"):
            tensors[name + ".weight"] = tensor.transpose(1, 2)
        elif name.endswith("experts.down_proj_bias"):
            tensors[name.replace("_bias", ".bias")] = tensor
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
