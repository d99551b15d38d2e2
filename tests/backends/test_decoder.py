"""The laws of :class:`vt_core.decode.decoder.Decoder` on every backend, compared with the stock framework."""

from __future__ import annotations

import numpy as np
import pytest

from tests import stock
from tests.conftest import backend_params
from tests.rounding import round_weights
from tests.tiny import KINDS, QUANTIZED, stock_source
from vt_core import load
from vt_core.vocab.heads import HEADS

PROMPT = [5, 17, 300, 42, 42, 980, 7]
LONG = [
    int(i) for i in np.random.default_rng(0).integers(3, 900, size=60)
]  # longer than Gemma's window of 16
TOKENS = 24

pytestmark = [
    pytest.mark.parametrize("backend", backend_params()),
    pytest.mark.parametrize("kind", KINDS),
]


@pytest.fixture
def stock_model(tiny):
    models: dict = {}

    def load_stock(backend, kind, dtype="float32", quantize=None):
        key = backend, kind, dtype, quantize
        if key not in models:
            models[key] = stock.LOAD[backend](stock_source(tiny(kind, dtype)[0], backend), dtype)
            if quantize is not None:
                round_weights(models[key]._model, int(quantize.removeprefix("int")))
        return models[key]

    return load_stock


@pytest.fixture
def stock_ids(stock_model):
    """``stock_ids(backend, kind, prompt, dtype)``: greedy ids of the stock framework."""

    def run(backend, kind, prompt, dtype="float32"):
        return stock.GENERATE[backend](stock_model(backend, kind, dtype), prompt, TOKENS, eos=[0, 2])[0]

    return run


@pytest.mark.parametrize("prompt", [PROMPT, LONG, [9]], ids=["short", "long", "one"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_head_gives_stock_ids(backend, kind, prompt, dtype, tiny, stock_ids):
    if (backend, dtype) == ("mlx", "bfloat16"):
        pytest.skip("mlx-lm chooses by log-probabilities, whose rounding makes ties that logits do not have")
    model = load(tiny(kind, dtype)[1], backend=backend, head="full", device="cpu", dtype=dtype)
    expected = stock_ids(backend, kind, prompt, dtype)
    assert len(set(expected)) >= 5, "the text must be varied"
    assert list(model.generate(prompt, max_tokens=TOKENS).token_ids) == expected


@pytest.mark.parametrize("head", ["prealloc", "split", "rebuild"])
def test_reduced_heads_give_stock_ids_when_these_are_active(backend, kind, head, tiny, stock_ids):
    model = load(tiny(kind)[1], backend=backend, head=head, device="cpu")
    for prompt in (PROMPT, LONG):
        expected = stock_ids(backend, kind, prompt)
        model.decoder.head.set_static(expected)
        result = model.generate(prompt, max_tokens=TOKENS, approximate=True)
        assert list(result.token_ids) == expected
        assert result.stats.static_rows == len(set(expected)) < model.rows / 20


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.1, "seed": 9}], ids=["greedy", "sampled"])
def test_reduced_heads_give_equal_ids_over_several_requests(backend, kind, sampling, tiny):
    texts = {}
    for head in ("prealloc", "split", "rebuild"):
        model = load(tiny(kind)[1], backend=backend, head=head, device="cpu")
        model.decoder.head.set_static(range(3, 400, 7))
        texts[head] = [
            model.generate(prompt, max_tokens=TOKENS, approximate=True, **sampling).token_ids
            for prompt in (PROMPT, LONG, PROMPT)
        ]
        assert model.decoder.head.vocabulary.ids.tolist() == list(range(3, 400, 7))
    assert texts["prealloc"] == texts["split"] == texts["rebuild"]
    assert texts["prealloc"][0] == texts["prealloc"][2]
    active = {*range(3, 400, 7), *PROMPT, *LONG}
    assert set(texts["prealloc"][0]) | set(texts["prealloc"][1]) <= active


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int8"), ("float32", "int4")],
)
def test_reduced_logits_are_columns_of_the_full_logits(backend, kind, dtype, quantize, tiny, stock_model):
    if quantize is not None and (backend == "mlx" or kind in QUANTIZED):
        pytest.skip("PyTorch quantizes float weights")

    def logits(head, static):
        options = {"device": "cpu", "dtype": dtype, "quantize": quantize}
        decoder = load(tiny(kind, dtype)[1], backend=backend, head=head, **options).decoder
        decoder.head.set_static(static)
        slot = decoder.open()
        decoder.head.add(LONG)
        values = decoder.logits(decoder.prefill(slot, np.array(LONG)))[0]
        ids = decoder.head.vocabulary.ids.copy()
        decoder.close(slot)
        decoder.head.truncate()
        return values, ids

    # In bfloat16, rounding hides the order of summation. Quantized heads sum whole numbers.
    tolerance = 0 if quantize or dtype == "bfloat16" else 1e-5
    full, _ = logits("full", [])
    if quantize is None or dtype == "float32":  # the reference multiplies in float32
        expected = stock.next_logits(backend, stock_model(backend, kind, dtype, quantize), LONG)[: len(full)]
        close = 2e-3 if quantize else tolerance
        np.testing.assert_allclose(full, expected, rtol=close, atol=close)
    for head in ("prealloc", "split", "rebuild"):
        reduced, ids = logits(head, range(0, 200, 3))
        np.testing.assert_allclose(reduced, full[ids], rtol=tolerance, atol=tolerance)


def test_prefill_equals_shorter_prefill_and_steps(backend, kind, tiny):
    decoder = load(tiny(kind)[1], backend=backend, device="cpu").decoder
    slot = decoder.open()
    decoder.head.add(LONG)
    whole = decoder.logits(decoder.prefill(slot, np.array(LONG)))[0]
    decoder.close(slot)
    decoder.head.truncate()
    slot = decoder.open()
    decoder.head.add(LONG)
    step = decoder.prefill(slot, np.array(LONG[:9]))
    for token in LONG[9:]:
        step = decoder.step(slot, token)
    np.testing.assert_allclose(decoder.logits(step)[0], whole, rtol=1e-4, atol=1e-4)
    decoder.close(slot)
    decoder.head.truncate()


def test_follow_equals_step_on_the_choice(backend, kind, tiny):
    decoder = load(tiny(kind)[1], backend=backend, device="cpu").decoder
    if not KINDS[kind][1]["tie_word_embeddings"]:
        assert not decoder.can_follow
        return
    runs = []
    for follow in (True, False):
        slot = decoder.open()
        decoder.head.add(PROMPT)
        step = decoder.prefill(slot, np.array(PROMPT))
        ids = []
        for _ in range(8):
            ids.append(decoder.poll(step)[0])
            step = decoder.follow(slot, step) if follow else decoder.step(slot, ids[-1])
        runs.append(ids)
        decoder.close(slot)
        decoder.head.truncate()
    assert runs[0] == runs[1]


@pytest.mark.parametrize("head", [head for head in HEADS if head != "full"])
def test_only_needed_rows_are_read(backend, kind, head, tiny):
    model = load(tiny(kind)[1], backend=backend, head=head, device="cpu")
    rows = model.decoder._rows
    static = list(range(3, 60))
    tables = {rows.embedding, rows.head_table}

    def bytes_read():
        return sum(table.bytes_read for table in tables)

    before = bytes_read()
    model.decoder.head.set_static(static)
    result = model.generate(PROMPT, max_tokens=6, approximate=True)
    read = bytes_read() - before
    manifest = model.directory.manifest
    row = max(manifest.tables[table.spec.name].columns for table in tables) * 4
    untied = not model.directory.manifest.tied
    prompt = len(set(PROMPT))
    # Static rows once; rows of the prompt as embeddings (MLX reads the last token's again, because it runs
    # alone) and as head rows.
    most = (
        len(static)
        + prompt
        + 1
        + len(set(PROMPT) - set(static))
        + (result.stats.generated_tokens if untied else 0)
    )
    assert read <= most * row
