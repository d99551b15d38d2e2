from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.decode.heads import FakeHead, check, drafts, every_choice
from vt_core.decode.sampling import NOISE_SPAN, Sampler, SamplerSettings, gumbel
from vt_core.errors import ModelError, OptionError

ROWS = 64


def reference(logits, ids, settings, position, counts):
    """The definition, over every row, without shortcuts."""
    rows = []
    for logit, token in zip(logits.astype(np.float64), ids, strict=True):
        if counts[token]:
            logit = logit / settings.repetition_penalty if logit > 0 else logit * settings.repetition_penalty
            logit -= settings.presence_penalty
        rows.append(
            [
                logit - settings.frequency_penalty * counts[token] + settings.logit_bias.get(int(token), 0),
                int(token),
            ]
        )
    rows.sort(key=lambda row: (-row[0], row[1]))
    if settings.temperature == 0:
        return rows[0][1]
    for row in rows:
        row[0] /= settings.temperature
    if settings.top_k:
        rows = rows[: settings.top_k]
    best = rows[0][0]
    total = sum(math.exp(score - best) for score, _ in rows)
    before, kept = 0.0, []
    for score, token in rows:
        if before >= settings.top_p * total:
            break
        kept.append((score, token))
        before += math.exp(score - best)
    kept = [(score, token) for score, token in kept if math.exp(score - best) >= settings.min_p * (1 - 1e-6)]
    return max(
        kept, key=lambda row: (row[0] + gumbel(settings.seed, position, np.array([row[1]]))[0], -row[1])
    )[1]


sampler_settings = st.builds(
    SamplerSettings,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 200]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.6]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.sampled_from([{}, {3: 2.0, 60: -1.5}]),
)


@settings(max_examples=400, deadline=None)
@given(sampler_settings, st.integers(0, 2**32), st.integers(0, 500), st.booleans())
def test_choice_matches_the_definition(chosen, seed, position, spread):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(ROWS)[:50].astype(np.int64)
    # Random values do not lie on a border, where two orders of a sum could differ. Wide ones exceed the span
    # of the noise.
    logits = (rng.normal(size=50) * (20 if spread else 2)).astype(np.float32)
    context = rng.integers(0, ROWS, size=20)
    sampler = Sampler(chosen, ROWS)
    sampler.extend(context)
    counts = np.bincount(context, minlength=ROWS)
    assert sampler.choose(logits, ids, position) == reference(logits, ids, chosen, position, counts)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.8]))
def test_choice_does_not_depend_on_other_active_rows(seed, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=ROWS).astype(np.float32) * 3
    ids = np.arange(ROWS)
    sampler = Sampler(SamplerSettings(temperature=temperature, seed=7), ROWS)
    winner = sampler.choose(logits, ids, 4)
    some = np.union1d(rng.permutation(ROWS)[:20], [winner])
    order = rng.permutation(some)
    assert sampler.choose(logits[order], order, 4) == winner


def test_ties_go_to_the_lowest_full_id():
    sampler = Sampler(SamplerSettings(), ROWS)
    assert sampler.choose(np.array([1, 5, 5, 2], np.float32), np.array([9, 40, 8, 1]), 0) == 8


def test_draws_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplerSettings(temperature=1.0, seed=1), 4)
    draws = [sampler.choose(logits, np.arange(4), position) for position in range(20_000)]
    shares = np.bincount(draws, minlength=4) / len(draws)
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.015  # four standard deviations


def test_noise_is_finite_and_standard_gumbel():
    noise = np.concatenate(
        [gumbel(seed, position, np.arange(5000)) for seed in range(5) for position in range(10)]
    )
    assert np.isfinite(noise).all()
    assert noise.max() - noise.min() <= NOISE_SPAN
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - math.pi**2 / 6) < 0.03


def test_noise_depends_on_seed_position_and_id_only():
    base = gumbel(1, 2, np.array([3]))[0]
    assert base == pytest.approx(EXPECTED_NOISE, abs=1e-12)
    assert (
        len(
            {
                base,
                gumbel(2, 2, np.array([3]))[0],
                gumbel(1, 3, np.array([3]))[0],
                gumbel(1, 2, np.array([4]))[0],
            }
        )
        == 4
    )


EXPECTED_NOISE = 0.27850324604691684  # a change of the hash changes every sampled text: this pins it


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, but it must be 0, or between"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0, but it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -3}, "top_k is -3"),
        ({"min_p": 2.0}, "min_p is 2.0, but it must be between 0 and 1"),
        ({"seed": -1}, "seed is -1"),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty is 0.0, but it must be between 0.000001 and 1000000",
        ),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf"),
        ({"frequency_penalty": 1e39}, "frequency_penalty is 1e+39"),
        ({"temperature": 1e-38}, "temperature is 1e-38"),
        ({"temperature": "hot"}, "temperature is hot"),
        ({"seed": 10**400}, "seed is a number of 1329 bits"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3 is nan"),
    ],
)
def test_values_out_of_range_are_refused(options, sentence):
    with pytest.raises(OptionError, match=re.escape(sentence)):
        SamplerSettings(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": True}, "temperature is True"),
        ({"temperature": None}, "temperature is None"),
        ({"top_k": 2.5}, "top_k is 2.5, but it must be a whole number"),
        ({"top_k": "3"}, "top_k is 3, but it must be a whole number"),
        ({"seed": 1j}, "seed is 1j"),
        ({"logit_bias": [1]}, "logit_bias is [1], but it must map token ids to numbers"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias names token a, but tokens are whole numbers"),
        ({"logit_bias": {1: "x"}}, "logit_bias of token 1 is x"),
        ({"temperature": "x" * 500}, "temperature is " + "x" * 57 + "..., but"),
    ],
)
def test_values_of_the_wrong_type_are_refused(options, sentence):
    with pytest.raises(OptionError, match=re.escape(sentence)):
        SamplerSettings(**options)


def test_numbers_of_numpy_are_accepted():
    found = SamplerSettings(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        seed=np.uint64(7),
        logit_bias={np.int32(2): np.float64(1)},
    )
    assert found == SamplerSettings(temperature=0.5, top_k=3, seed=7, logit_bias={2: 1.0})
    assert (type(found.top_k), type(found.temperature)) == (int, float)


extremes = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-6, 1e6]),
        "top_k": st.sampled_from([0, 1, 2**31 - 1]),
        "top_p": st.sampled_from([1e-300, 1.0 - 2**-53, 1.0]),
        "min_p": st.sampled_from([0.0, 1e-300, 1.0]),
        "seed": st.sampled_from([0, 2**64 - 1]),
        "repetition_penalty": st.sampled_from([1e-6, 1.0, 1e6]),
        "presence_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
        "frequency_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
        "logit_bias": st.sampled_from([{}, {5: 1e6}, {5: -1e6, 6: 1e-300}]),
    }
)


@given(extremes, st.integers(0, 2**32), st.sampled_from([1e-30, 5.0, 1e4]))
def test_extremes_of_every_setting_choose_on_both_paths(sampling, seed, spread):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, ROWS)) * spread).astype(np.float32)
    sampler = Sampler(SamplerSettings(**sampling), ROWS)
    sampler.extend(rng.integers(0, ROWS, size=30))
    active = np.union1d(rng.permutation(ROWS)[:10], [5, 6])
    block = drafts(sampler, logits[:, active], active)
    assert check(FakeHead(logits), block, sampler)[0].choices == every_choice(sampler, logits)


def test_logits_that_are_not_numbers_are_an_error():
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplerSettings(temperature=temperature), ROWS)
        with pytest.raises(ModelError, match="not finite numbers"):
            sampler.choose(np.array([1, np.nan, 2], np.float32), np.arange(3), 0)


def test_bias_without_a_row_is_refused():
    with pytest.raises(OptionError, match="names token id 64, but the model has 64 rows"):
        Sampler(SamplerSettings(logit_bias={64: 1.0}), ROWS)
