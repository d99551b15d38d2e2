"""Padding rows, after the last token, are never chosen, even with the largest logit."""

from __future__ import annotations

import shutil
from itertools import product

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from tests import stock
from tests.conftest import backend_params
from tests.tiny import PADDING_ROWS
from vt_core import load
from vt_core.errors import OptionError, PromptError
from vt_core.vocab.heads import HEADS

PROMPT = [5, 17, 300, 42]
TOKENS = 8
SAMPLINGS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 1}}
pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def hostile(request, tiny, tmp_path_factory):
    """Source and model directory of a model in which padding rows have the largest logits."""
    root = tmp_path_factory.mktemp("padding")
    source = shutil.copytree(tiny(request.param)[0], root / "source")
    tensors = load_file(source / "model.safetensors")
    head = tensors["lm_head.weight" if request.param == "qwen2" else "model.embed_tokens.weight"]
    # Opposite rows: for any hidden state, one of the two logits is far above all others.
    head[-1] = np.random.default_rng(0).normal(size=head.shape[1]).astype(np.float32) * 100
    head[-2] = -head[-1]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source, convert(source, root / "vt", progress=False)


def test_padding_rows_are_never_chosen(backend, hostile):
    source, directory = hostile
    logits = stock.next_logits(backend, stock.LOAD[backend](source, "float32"), PROMPT)
    tokens = len(logits) - PADDING_ROWS
    assert logits.argmax() >= tokens
    texts = {name: set() for name in SAMPLINGS}
    for head in HEADS:
        # Small tiles, so that some hold only padding.
        model = load(directory, backend=backend, head=head, device="cpu", dtype="float32", tile_bytes=4000)
        model.decoder.head.set_static(range(0, 300, 2))
        for name, approximate in product(SAMPLINGS, (False, True)):
            model.forget_learned()
            options = {"max_tokens": TOKENS, "approximate": approximate, **SAMPLINGS[name]}
            result = model.generate(PROMPT, **options)
            assert max(result.token_ids) < tokens
            assert result.stats.vocab_rows == len(logits)
            assert result.stats.static_rows == (tokens if head == "full" else 150)
            if not approximate:
                texts[name].add(result.token_ids)
    assert [len(each) for each in texts.values()] == [1, 1]


def test_padding_ids_are_refused_in_prompts_and_biases_and_dropped_from_static(backend, hostile):
    model = load(hostile[1], backend=backend, device="cpu")
    padding = model.directory.manifest.vocab_rows - 1
    model.set_static(np.array([3, 4, padding]))
    assert model.decoder.head.vocabulary.ids.tolist() == [3, 4]
    with pytest.raises(PromptError, match=f"token id {padding}, but the model's tokens are 0 to"):
        model.generate([5, padding])
    with pytest.raises(OptionError, match=f"token id {padding}"):
        model.generate([5], logit_bias={padding: 5.0})
