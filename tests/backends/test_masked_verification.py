"""Verification on the real backends chooses among allowed rows what the whole head chooses among them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.test_exact import SAMPLINGS
from tests.conftest import backend_params
from vt_core import load
from vt_core.decode.blocks import Block, Draft
from vt_core.decode.sampling import Sampler, SamplerSettings

PROMPT = np.array([5, 17, 300, 42, 42, 980, 7])
POSITIONS = 5

pytestmark = pytest.mark.parametrize("backend", backend_params())


def read(model):
    """Steps of some positions after the prompt."""
    decoder = model.decoder
    slot = decoder.open()
    steps = [decoder.prefill(slot, PROMPT)]
    for token in PROMPT[1:POSITIONS].tolist():
        steps.append(decoder.step(slot, token))
    return steps


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_choices_are_those_of_the_whole_head_among_allowed_rows(backend, kind, sampling, dtype, tiny):
    options = {"backend": backend, "device": "cpu", "dtype": dtype}
    directory = tiny(kind, dtype)[1]
    whole, reduced = (load(directory, head=head, **options) for head in ("full", "prealloc"))
    sampler = Sampler(SamplerSettings(**SAMPLINGS[sampling]), whole.rows)
    sampler.extend(PROMPT)
    every = np.arange(whole.rows)
    active = np.union1d(PROMPT, np.arange(3, whole.rows, 5))
    reduced.decoder.head.set_static(active)
    active = reduced.decoder.head.vocabulary.ids
    rng = np.random.default_rng(3)
    drafts, hidden, expected = [], [], []
    for position, (full, small) in enumerate(zip(read(whole), read(reduced), strict=True)):
        logits = whole.decoder.logits(full)[0]
        # In the first mask most tiles have no allowed row.
        allowed = every < 40 if position == 0 else rng.random(whole.rows) < 0.3
        allowed[active[0]] = True
        kept = allowed[active]
        own = reduced.decoder.logits(small)[0]
        drafts.append(
            Draft(position, (), sampler.adjust(own[kept], active[kept]), sampler.magnitude(own), allowed)
        )
        hidden.append(small.hidden)
        expected.append(sampler.choose(logits[allowed], every[allowed], position))
    (found,) = reduced.decoder.verify([Block(hidden, drafts, sampler)])
    assert found.choices == expected
