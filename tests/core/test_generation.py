from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake import FakeDecoder, fake_table
from vt_core.generation import decode
from vt_core.heads import HEADS, FullHead
from vt_core.sampling import Sampler, SamplerSettings

TABLE = fake_table()
REDUCED = [head for head in HEADS.values() if head is not FullHead]


def run(head, static, prompt, *, max_tokens=12, eos=(), can_follow=False, **sampling):
    decoder = FakeDecoder(TABLE, head, can_follow)
    decoder.head.set_static(static)
    sampler = Sampler(SamplerSettings(**sampling), len(TABLE))
    return list(decode(decoder, np.array(prompt), sampler=sampler, max_tokens=max_tokens, eos_ids=eos))


@pytest.mark.parametrize("can_follow", [False, True])
@pytest.mark.parametrize("head", REDUCED)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5}, {"repetition_penalty": 1.4}])
@settings(max_examples=15, deadline=None)
@given(
    prompt=st.lists(st.integers(0, len(TABLE) - 1), min_size=1, max_size=8),
    others=st.sets(st.integers(0, len(TABLE) - 1)),
)
def test_a_vocabulary_that_holds_the_full_output_gives_the_full_output(
    head, can_follow, sampling, prompt, others
):
    full = run(FullHead, [], prompt, can_follow=can_follow, **sampling)
    assert run(head, others | set(full), prompt, can_follow=can_follow, **sampling) == full


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}])
def test_only_active_ids_come_out_and_the_prompt_is_active(sampling):
    static = set(range(0, 200, 20))
    out = run(HEADS["prealloc"], static, [3, 77, 150], max_tokens=40, **sampling)
    assert set(out) <= static | {3, 77, 150}


@pytest.mark.parametrize("can_follow", [False, True])
def test_it_stops_at_any_eos_id_and_at_the_limit(can_follow):
    free = run(FullHead, [], [1, 2], max_tokens=30, can_follow=can_follow)
    assert len(free) == 30
    eos = free[4]
    assert (
        run(FullHead, [], [1, 2], max_tokens=30, eos={eos, 1999}, can_follow=can_follow)
        == free[: free.index(eos) + 1]
    )
    assert run(FullHead, [], [1, 2], max_tokens=1, can_follow=can_follow) == free[:1]


def test_no_step_is_run_beyond_the_last_token():
    decoder = FakeDecoder(TABLE, FullHead)
    decoder.head.set_static([])
    list(
        decode(
            decoder, np.array([1]), sampler=Sampler(SamplerSettings(), len(TABLE)), max_tokens=5, eos_ids=()
        )
    )
    assert decoder.steps == 5


@pytest.mark.parametrize("how", ["closed", "failed", "finished"])
def test_a_request_leaves_only_static_rows_however_it_ends(how):
    decoder = FakeDecoder(TABLE, HEADS["prealloc"])
    decoder.head.set_static([1, 2, 3])
    decoder.fail_at = 4 if how == "failed" else None
    sampler = Sampler(SamplerSettings(), len(TABLE))
    tokens = decode(decoder, np.array([50, 60]), sampler=sampler, max_tokens=8, eos_ids=())
    if how == "closed":
        next(tokens)
        assert decoder.head.vocabulary.dynamic_size == 2
        tokens.close()
    elif how == "failed":
        with pytest.raises(MemoryError):
            list(tokens)
    else:
        list(tokens)
    assert decoder.head.vocabulary.ids.tolist() == [1, 2, 3]
    assert decoder.state is None
    decoder.fail_at = None
    again = list(decode(decoder, np.array([50, 60]), sampler=sampler, max_tokens=8, eos_ids=()))
    assert again == run(HEADS["prealloc"], [1, 2, 3], [50, 60], max_tokens=8)
