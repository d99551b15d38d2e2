from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.decode.heads import FakeHead, check, drafts
from tests.fake import FakeDecoder, fake_table
from vt_core.decode import scoring
from vt_core.decode.probabilities import log_probabilities
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.scoring import score
from vt_core.vocab.heads import PreallocHead

TABLE = fake_table()
V = len(TABLE)


def decoder():
    made = FakeDecoder(TABLE, PreallocHead)
    made.head.set_static([0, 1])
    return made


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 99),
    tile=st.integers(1, 70),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    shift=st.sampled_from([-500.0, 0.0, 500.0]),
    top=st.sampled_from([0, 1, 7, 60]),
)
def test_tiles_give_the_log_softmax_and_the_largest_in_order(seed, tile, spread, shift, top):
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-4, 5, size=(5, 60)) * spread + shift).astype(np.float32)  # ties are common
    targets = rng.integers(0, 60, size=5)
    head = FakeHead(logits)
    head.tile = tile
    found = log_probabilities(head, np.arange(5), targets, top)
    exact = logits.astype(np.float64) - shift
    expected = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.log_probs, expected[np.arange(5), targets], rtol=1e-5, atol=1e-5)
    assert found.choices.tolist() == logits.argmax(axis=1).tolist()
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    assert found.top_ids.tolist() == largest.tolist()
    np.testing.assert_allclose(
        found.top_log_probs, np.take_along_axis(expected, largest, axis=1), rtol=1e-5, atol=1e-5
    )


def test_near_ties_go_to_the_row_that_the_whole_head_prefers():
    whole = np.full((4, 90), -5.0, np.float32)
    whole[0, [7, 70]] = 16.0, 15.0  # far apart
    whole[1, [70, 85]] = 15.875, 16.0  # a unit apart, in one tile
    whole[2, [4, 80]] = 16.0, 16.0  # equal, in two tiles
    whole[3, [4, 80]] = 15.875, 16.0
    tiles = whole.copy()
    tiles[1, [70, 85]] = 16.0, 15.875
    tiles[2, [4, 80]] = 15.875, 16.0
    tiles[3, [4, 80]] = 16.0, 16.0
    head = FakeHead(tiles, whole, "bfloat16")
    targets = np.array([7, 85, 4, 80])
    found = log_probabilities(head, np.arange(4), targets)
    assert found.choices.tolist() == whole.argmax(axis=1).tolist() == targets.tolist()
    assert [(position, ids.tolist()) for position, ids in head.asked] == [
        (1, [70, 85]),
        (2, [4, 80]),
        (3, [4, 80]),
    ]
    assert head.scans == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_choices_are_those_of_verification(seed):
    rng = np.random.default_rng(seed)
    whole = (rng.integers(-40, 40, size=(6, 90)) / 8).astype(np.float32)  # near ties are common
    tiles = (whole + rng.choice([-1, 0, 1], size=whole.shape) * 2.0**-6).astype(np.float32)
    sampler = Sampler(SamplerSettings(), 90)
    (verified,) = check(FakeHead(tiles, whole, "bfloat16"), drafts(sampler, tiles, np.arange(90)), sampler)
    found = log_probabilities(FakeHead(tiles, whole, "bfloat16"), np.arange(6), np.zeros(6, np.int64))
    assert found.choices.tolist() == verified.choices == whole.argmax(axis=1).tolist()


TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, V - 1), min_size=1, max_size=6),
        st.lists(st.integers(0, V - 1), min_size=1, max_size=9),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[])
@given(texts=TEXTS, positions=st.integers(1, 12))
def test_texts_scored_together_score_as_one_by_one(texts, positions):
    together, alone = decoder(), decoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "POSITIONS", positions)
        pairs = [(np.array(a + b), len(a)) for a, b in texts]
        results = list(score(together, pairs))
    for (_, text), pair, result in zip(texts, pairs, results, strict=True):
        (single,) = score(alone, [pair])
        np.testing.assert_allclose(result.log_probs, single.log_probs, atol=1e-6)
        assert result.choices.tolist() == single.choices.tolist()
        assert len(result.choices) == len(text)
    # Every position once, and as many together as were asked for: the last reading takes what is left.
    assert sum(together.scored) == sum(len(text) for _, text in texts)
    assert all(count >= positions for count in together.scored[:-1])


def test_the_same_text_before_choices_of_one_token_is_read_once():
    made = decoder()
    texts = [(np.array([5, 6, 7, choice]), 3) for choice in (1, 2, 3, 4)]
    results = list(score(made, [*texts, (np.array([5, 6, 8, 1]), 3), (np.array([5, 6, 7, 1]), 2)]))
    assert made.positions == 2 + 2
    assert made.scored == [7]
    for (ids, _), result in zip(texts, results, strict=False):
        (single,) = score(decoder(), [(ids, 3)])
        np.testing.assert_allclose(result.log_probs, single.log_probs)


def test_a_failure_leaves_the_decoder_as_it_was_before(monkeypatch):
    made = decoder()
    monkeypatch.setattr(scoring, "POSITIONS", 2)

    def fail(states, targets, top):
        raise MemoryError("the device is full")

    made.score = fail
    with pytest.raises(MemoryError) as caught:
        list(score(made, [(np.arange(9), 1)]))
    assert made.opened == 0  # also while the error is still looked at
    del caught
