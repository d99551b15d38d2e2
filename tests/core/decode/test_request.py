"""The generation loop on the numpy fake backend, with every head and with arbitrary blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake import FakeDecoder, fake_table
from vt_core.decode.costs import Costs
from vt_core.decode.drafting import Drafted
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.scheduler import Scheduler
from vt_core.errors import ModelError
from vt_core.vocab.heads import HEADS, FullHead

TABLE = fake_table()
REDUCED = [head for head in HEADS.values() if head is not FullHead]


def request(
    decoder, *, max_tokens=12, eos=(), policy=None, drafter=None, slot=None, draft_tokens=None, **sampling
):
    sampler = Sampler(SamplerSettings(**sampling), len(TABLE))
    costs = Costs()
    for _ in range(2):
        costs.reads.add(1, 1.0)
        costs.reads.add(40, 1.0)  # any length costs the same, so all of a draft is read
    work = Request(decoder, sampler, max_tokens, eos, policy, drafter=drafter, costs=costs, slot=slot)
    work.draft_tokens = draft_tokens
    return work


def ids_of(work, prompt):
    costs = None if work.policy is None else work.policy.costs
    return Scheduler(work.decoder, costs).run(work, np.array(prompt))


def run(head, static, prompt, *, can_follow=False, **options):
    decoder = FakeDecoder(TABLE, head, can_follow)
    decoder.head.set_static(static)
    return list(ids_of(request(decoder, **options), prompt))


@pytest.mark.parametrize("can_follow", [False, True])
@pytest.mark.parametrize("head", REDUCED)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5}, {"repetition_penalty": 1.4}])
@settings(max_examples=15, deadline=None)
@given(
    prompt=st.lists(st.integers(0, len(TABLE) - 1), min_size=1, max_size=8),
    others=st.sets(st.integers(0, len(TABLE) - 1)),
)
def test_head_with_all_tokens_of_the_full_output_gives_that_output(
    head, can_follow, sampling, prompt, others
):
    full = run(FullHead, [], prompt, can_follow=can_follow, **sampling)
    assert run(head, others | set(full), prompt, can_follow=can_follow, **sampling) == full


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}])
def test_approximate_ids_are_static_or_from_the_prompt(sampling):
    static = set(range(0, 200, 20))
    out = run(HEADS["prealloc"], static, [3, 77, 150], max_tokens=40, **sampling)
    assert set(out) <= static | {3, 77, 150}


@pytest.mark.parametrize("can_follow", [False, True])
def test_stops_at_any_eos_id_and_at_the_limit(can_follow):
    free = run(FullHead, [], [1, 2], max_tokens=30, can_follow=can_follow)
    assert len(free) == 30
    eos = free[4]
    assert (
        run(FullHead, [], [1, 2], max_tokens=30, eos={eos, 1999}, can_follow=can_follow)
        == free[: free.index(eos) + 1]
    )
    assert run(FullHead, [], [1, 2], max_tokens=1, can_follow=can_follow) == free[:1]


def test_no_step_is_run_after_the_last_token():
    decoder = FakeDecoder(TABLE, FullHead)
    decoder.head.set_static([])
    list(ids_of(request(decoder, max_tokens=5), [1]))
    assert decoder.steps == 4  # the prompt gives the first


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("how", ["closed", "failed", "finished"])
def test_ended_request_leaves_only_static_rows(how, exact):
    decoder = FakeDecoder(TABLE, HEADS["prealloc"])
    decoder.head.set_static([1, 2, 3])
    decoder.fail_at = 4 if how == "failed" else None
    policy = BlockPolicy() if exact else None
    tokens = ids_of(request(decoder, max_tokens=8, policy=policy), [50, 60])
    if how == "closed":
        next(tokens)
        assert decoder.head.vocabulary.dynamic_size >= 2
        tokens.close()
    elif how == "failed":
        with pytest.raises(MemoryError):
            list(tokens)
    else:
        list(tokens)
    assert decoder.head.vocabulary.ids.tolist() == [1, 2, 3]
    assert decoder.opened == 0
    decoder.fail_at = None
    again = list(ids_of(request(decoder, max_tokens=8, policy=policy), [50, 60]))
    assert again == run(HEADS["prealloc"], [1, 2, 3], [50, 60], max_tokens=8, policy=policy)


@pytest.mark.parametrize("can_follow", [False, True])
@pytest.mark.parametrize("policy", [None, BlockPolicy()])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9}])
def test_nan_logits_are_an_error(can_follow, policy, sampling):
    decoder = FakeDecoder(TABLE, HEADS["prealloc"], can_follow)
    decoder.head.set_static([1, 2, 3])
    decoder.nan_at = 4
    with pytest.raises(ModelError, match="logits that are not finite numbers in float32"):
        list(ids_of(request(decoder, max_tokens=8, policy=policy, **sampling), [50, 60]))


def test_only_a_policy_costs_a_softmax_per_step():
    counts = []
    for policy in (None, BlockPolicy()):
        decoder = FakeDecoder(TABLE, HEADS["prealloc"])
        decoder.head.set_static([1, 2, 3])
        list(ids_of(request(decoder, max_tokens=8, policy=policy), [50, 60]))
        counts.append(decoder.softmaxes)
    assert counts[0] == 0 and counts[1] == decoder.steps + 1


class Blocks:
    """A policy with given block lengths."""

    step_s = 0.0

    def __init__(self, lengths):
        self.lengths = list(lengths)
        self.learned = []
        self.costs = Costs()

    def course(self):
        return self

    def start_block(self):
        self.most = self.lengths.pop(0) if self.lengths else 3
        self.count = 0

    def push(self, confidences, read):
        self.count += len(confidences)

    def is_full(self, company, rereads=False):
        return self.count >= self.most

    def learn(self, accepted):
        self.learned.append((self.count, accepted))


class Guesses:
    """A drafter that proposes given texts, right or wrong, at every place."""

    recent = 0.5

    def __init__(self, drafts, text=()):
        self.drafts, self.text = list(drafts), list(text)
        self.asked = 0
        self.seen = []

    def begin(self, prompt):
        pass

    def extend(self, ids):
        self.seen += ids

    def draft(self, most, pending):
        self.asked += 1
        given = self.drafts[self.asked % len(self.drafts)]
        at = len(self.seen) + len(pending)
        # A number stands for that many tokens of the right text.
        ids = self.text[at : at + given] if isinstance(given, int) else given
        return Drafted(list(ids)[:most], [0.9] * len(ids[:most]))


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.6]),
        "top_k": st.sampled_from([0, 0, 3, 20]),
        "top_p": st.sampled_from([1.0, 0.9, 0.4]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.3]),
        "logit_bias": st.sampled_from([{}, {7: 3.0, 190: -2.0}]),
        "seed": st.integers(0, 2**40),
    }
)
lengths = st.lists(st.integers(1, 9), max_size=10)
ids = st.integers(0, len(TABLE) - 1)


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(REDUCED),
    static=st.sets(ids, max_size=80),
    prompt=st.lists(ids, min_size=1, max_size=6),
    policy=st.one_of(st.builds(Blocks, lengths), st.builds(BlockPolicy)),
    can_follow=st.booleans(),
    eos=st.sets(ids, max_size=30),
    max_tokens=st.integers(1, 20),
    sampling=samplings,
)
def test_exact_ids_are_those_of_the_full_head(
    head, static, prompt, policy, can_follow, eos, max_tokens, sampling
):
    options = {"eos": eos, "max_tokens": max_tokens, "can_follow": can_follow, **sampling}
    assert run(head, static, prompt, policy=policy, **options) == run(FullHead, [], prompt, **options)


def test_rescues_join_the_dynamic_rows_and_are_counted():
    decoder = FakeDecoder(TABLE, HEADS["prealloc"])
    decoder.head.set_static([1, 2, 3])
    policy = Blocks([1, 4, 4])
    work = request(decoder, max_tokens=16, policy=policy)
    tokens = ids_of(work, [50, 60])
    out = [next(tokens) for _ in range(10)]
    rescued = work.checks.rescued
    assert rescued and set(rescued) <= set(decoder.head.vocabulary.ids.tolist())
    out += list(tokens)
    assert out == run(FullHead, [], [50, 60], max_tokens=16)
    assert work.checks.drafted == decoder.verified == sum(length for length, _ in policy.learned)
    wrong = [(length, accepted) for length, accepted in policy.learned if accepted < length]
    assert len(rescued) == len(wrong)
    assert work.checks.rolled_back == sum(length - 1 - accepted for length, accepted in wrong)
    assert work.checks.verifications == len(policy.learned)


@pytest.mark.parametrize("can_follow", [False, True])
def test_every_token_is_verified_alone_without_rewinding(can_follow):
    decoder = FakeDecoder(TABLE, HEADS["prealloc"], can_follow)
    decoder.can_rewind = False
    decoder.head.set_static([1, 2, 3])
    policy = Blocks([5] * 20)
    out = list(ids_of(request(decoder, max_tokens=10, policy=policy), [50, 60]))
    assert out == run(FullHead, [], [50, 60], max_tokens=10)
    assert {length for length, _ in policy.learned} == {1}


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from([*REDUCED, FullHead]),
    static=st.sets(ids, max_size=80),
    prompt=st.lists(ids, min_size=1, max_size=6),
    policy=st.one_of(st.builds(Blocks, lengths), st.builds(BlockPolicy)),
    can_follow=st.booleans(),
    eos=st.sets(ids, max_size=10),
    max_tokens=st.integers(1, 20),
    drafts=st.lists(st.one_of(st.integers(0, 9), st.lists(ids, max_size=9)), min_size=1, max_size=6),
    draft_tokens=st.none() | st.integers(1, 16),
    sampling=samplings,
)
def test_drafts_do_not_change_exact_ids(
    head, static, prompt, policy, can_follow, eos, max_tokens, drafts, draft_tokens, sampling
):
    options = {"eos": eos, "max_tokens": max_tokens, "draft_tokens": draft_tokens, **sampling}
    expected = run(FullHead, [], prompt, **options)
    policy = None if head is FullHead else policy
    drafter = Guesses(drafts, expected)
    found = run(head, static, prompt, policy=policy, drafter=drafter, can_follow=can_follow, **options)
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(
    static=st.sets(ids, max_size=40),
    drafts=st.lists(st.one_of(st.integers(0, 9), st.lists(ids, max_size=9)), min_size=1, max_size=6),
    sampling=samplings,
)
def test_drafts_do_not_change_approximate_ids(static, drafts, sampling):
    expected = run(HEADS["prealloc"], static, [3, 77], **sampling)
    assert run(HEADS["prealloc"], static, [3, 77], drafter=Guesses(drafts, expected), **sampling) == expected


def test_a_given_number_of_tokens_is_drafted_whatever_reads_cost():
    free = run(FullHead, [], [50, 60], max_tokens=16)
    decoder = FakeDecoder(TABLE, FullHead)
    decoder.head.set_static([])
    work = request(decoder, max_tokens=16, drafter=Guesses([9], free), draft_tokens=3)
    work.costs = None
    assert list(ids_of(work, [50, 60])) == free
    # The first token comes from the prompt; then three reads of four tokens, and one of what is left.
    assert {length: sum(found.accepted) for length, found in work.drafts.lengths.items()} == {3: 3, 2: 1}


def test_right_drafts_are_counted_and_save_reads():
    free = run(FullHead, [], [50, 60], max_tokens=16)
    decoder = FakeDecoder(TABLE, HEADS["prealloc"])
    decoder.head.set_static(range(len(TABLE)))
    slot = decoder.open()
    work = request(decoder, max_tokens=16, policy=Blocks([8] * 9), drafter=Guesses([3], free), slot=slot)
    assert list(ids_of(work, [50, 60])) == free
    assert (work.drafts.reads, work.drafts.drafted, work.drafts.accepted) == (4, 11, 11)
    accepted = {length: found.accepted for length, found in work.drafts.lengths.items()}
    assert not any(sum(counts[:-1]) for counts in accepted.values())
    assert sum(length * counts[-1] for length, counts in accepted.items()) == 11
    assert sum(counts[-1] for counts in accepted.values()) == 4
    assert decoder.opened == 1 and slot.ids == [50, 60, *free[:-1]]
