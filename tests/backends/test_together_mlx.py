"""Several slots in one pass of an MLX body: each has the states that it has alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import KINDS
from vt_core import load
from vt_core.decode.types import Read

pytest.importorskip("mlx_lm")

from vt_mlx.together import BatchLayer

RNG = np.random.default_rng(3)
#: Kinds whose layers depend on a slot's own tokens only.
TOGETHER = {"llama", "qwen2", "gemma3"}


def read(decoder, slots, pieces, together):
    reads = [Read(slot, piece) for slot, piece in zip(slots, pieces, strict=True)]
    return [decoder.logits(steps) for steps in decoder.read(reads, together=together)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in TOGETHER])
def test_slots_together_have_the_logits_that_they_have_alone(kind, tiny):
    decoder = load(tiny(kind)[1], backend="mlx", device="cpu", dtype="float32").decoder
    decoder.head.set_static(range(1000))
    texts = [RNG.integers(3, 900, size).tolist() for size in (3, 40, 17)]  # the second wraps Gemma's window
    groups = []
    for _ in range(2):
        slots = [decoder.open() for _ in texts]
        for slot, text in zip(slots, texts, strict=True):
            decoder.prefill(slot, np.array(text))
        groups.append(slots)
    passes = 0
    original = decoder._run_together

    def counting(*arguments):
        nonlocal passes
        passes += 1
        return original(*arguments)

    decoder._run_together = counting
    for counts in ((1, 1, 1), (2, 1, 4), (5, 3, 1), (1, 1, 1)):
        pieces = [RNG.integers(3, 900, count).tolist() for count in counts]
        alone, together = (
            read(decoder, slots, pieces, flag) for slots, flag in zip(groups, (False, True), strict=True)
        )
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
        for slots in groups:  # of one slot some tokens are taken back: the others stay as they are
            decoder.rewind(slots[1], counts[1])
    assert passes >= 4


def test_recurrent_layers_are_not_read_together(tiny):
    decoder = load(tiny("lfm2")[1], backend="mlx", device="cpu").decoder
    slots = [decoder.open(), decoder.open()]
    assert not decoder._fits_together([Read(slot, [5]) for slot in slots])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_probe_passes_and_refuses_a_body_that_ignores_positions(tiny, dtype, monkeypatch):
    decoder = load(tiny("llama")[1], backend="mlx", device="cpu", dtype=dtype).decoder
    reads = [Read(decoder.open(), [5]) for _ in range(2)]
    with decoder._context():
        assert decoder._fits_together(reads)
    monkeypatch.setattr(BatchLayer, "offset", property(lambda _: 3, lambda _, value: None), raising=False)
    decoder._runs_alike = None
    with decoder._context():
        assert not decoder._fits_together(reads)
