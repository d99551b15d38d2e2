"""Several requests at once on the numpy fake: each has the text that it has alone, whatever the others do."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.decode.test_request import TABLE, Guesses, ids, run, samplings
from tests.fake import FakeDecoder
from vt_core.decode.costs import Costs
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.scheduler import BACKLOG, Scheduler
from vt_core.errors import BackendError, ModelError
from vt_core.vocab.heads import HEADS, FullHead

STATIC = range(0, len(TABLE), 7)


def made(batch=8, cache_bytes=None):
    decoder = FakeDecoder(TABLE, HEADS["prealloc"])
    decoder.head.set_static(STATIC)
    policy = BlockPolicy()
    return decoder, policy, Scheduler(decoder, policy.costs, batch=batch, cache_bytes=cache_bytes)


def request(decoder, policy, *, max_tokens=12, drafter=None, together=True, slot=None, **sampling):
    sampler = Sampler(SamplerSettings(**sampling), len(TABLE))
    costs = Costs()
    for _ in range(2):
        costs.reads.add(1, 1.0)
        costs.reads.add(40, 1.0)
    return Request(
        decoder, sampler, max_tokens, (), policy, drafter=drafter, costs=costs, together=together, slot=slot
    )


def is_as_before(decoder):
    return decoder.opened == 0 and decoder.head.vocabulary.ids.tolist() == list(STATIC)


requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(ids, min_size=1, max_size=5),
        "exact": st.booleans(),
        "max_tokens": st.integers(1, 12),
        "together": st.booleans(),
        "drafts": st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=3),
        "sampling": samplings,
    }
)


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(requests, min_size=1, max_size=5),
    order=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60),
    can_read_together=st.booleans(),
    batch=st.integers(1, 4),
)
def test_any_interleaving_gives_the_texts_of_requests_alone(asked, order, can_read_together, batch):
    decoder, policy, scheduler = made(batch)
    decoder.can_read_together = can_read_together
    expected, streams = [], []
    for each in asked:
        options = {"max_tokens": each["max_tokens"], **each["sampling"]}
        alone = (
            run(FullHead, [], each["prompt"], **options)
            if each["exact"]
            else run(HEADS["prealloc"], STATIC, each["prompt"], **options)
        )
        drafter = None if each["drafts"] is None else Guesses(each["drafts"], alone)
        work = request(
            decoder,
            policy if each["exact"] else None,
            drafter=drafter,
            together=each["together"],
            **options,
        )
        expected.append(alone)
        streams.append(scheduler.run(work, np.array(each["prompt"])))
    found = [[] for _ in asked]
    closed = set()
    for which, close in order:
        which %= len(asked)
        if close and which % 2 and which not in closed:
            closed.add(which)
            streams[which].close()
        else:
            found[which] += [token for _, token in zip(range(1), streams[which], strict=False)]
    for which, stream in enumerate(streams):
        found[which] += list(stream)
    for which, text in enumerate(expected):
        assert found[which] == (text[: len(found[which])] if which in closed else text)
    assert is_as_before(decoder) and scheduler.is_idle


def test_one_scan_and_one_pass_serve_all_requests():
    decoder, policy, scheduler = made()
    alone = [run(FullHead, [], [50, token], max_tokens=12) for token in range(4)]
    for count in (1, 4):
        decoder.scans = decoder.together = 0
        works = [request(decoder, policy) for _ in range(count)]
        streams = [scheduler.run(work, np.array([50, token])) for token, work in enumerate(works)]
        found = [[next(stream)] for stream in streams]
        for _ in range(11):
            for text, stream in zip(found, streams, strict=True):
                text.append(next(stream))
        assert found == alone[:count]
        checks = sum(work.checks.verifications for work in works)
        assert decoder.scans == checks if count == 1 else decoder.scans < checks
        assert (decoder.together > 0) == (count > 1)
        for stream in streams:
            stream.close()


def test_failed_request_leaves_the_others_alone():
    decoder, policy, scheduler = made()
    expected = run(FullHead, [], [50, 60], max_tokens=12)
    stream = scheduler.run(request(decoder, policy), np.array([50, 60]))
    found = [next(stream)]
    work = request(decoder, policy, temperature=1.0)
    other = scheduler.run(work, np.array([1]))
    next(other)

    def fail(*_):
        raise ModelError("no choice")

    work.sampler.pick = fail
    with pytest.raises(ModelError, match="no choice"):
        list(other)
    assert [*found, *stream] == expected and is_as_before(decoder)


def test_failed_pass_for_several_requests_fails_them_all_and_later_ones_run():
    decoder, policy, scheduler = made()
    streams = [scheduler.run(request(decoder, policy), np.array([50, token])) for token in (1, 2)]
    for stream in streams:
        next(stream)
    healthy = decoder._run_together
    decoder._run_together = lambda *_: (_ for _ in ()).throw(MemoryError("the device is full"))
    for stream in streams:
        with pytest.raises(MemoryError):
            list(stream)
    decoder._run_together = healthy
    assert is_as_before(decoder)
    work = request(decoder, policy)
    assert list(scheduler.run(work, np.array([50, 1]))) == run(FullHead, [], [50, 1], max_tokens=12)


def test_request_that_nobody_reads_pauses_and_does_not_hold_others_up():
    decoder, policy, scheduler = made(batch=1)
    works = [request(decoder, policy, max_tokens=3 * BACKLOG) for _ in range(2)]
    paused, read = (scheduler.run(work, np.array([50, 60])) for work in works)
    first = next(paused)
    text = list(read)
    assert len(text) == 3 * BACKLOG and text[0] == first
    assert works[0].checks.drafted < 2 * BACKLOG
    assert [first, *paused] == text


def test_abandoned_stream_is_cleaned_up():
    decoder, policy, scheduler = made()
    stream = scheduler.run(request(decoder, policy), np.array([50, 60]))
    next(stream)
    assert decoder.opened == 1
    del stream
    gc.collect()
    assert is_as_before(decoder) and scheduler.is_idle


def test_threads_share_a_decoder():
    decoder, policy, scheduler = made(batch=3)
    prompts = [[token, 3 * token] for token in range(12)]
    expected = [run(FullHead, [], prompt, max_tokens=12) for prompt in prompts]
    found = [[] for _ in prompts]

    def work(which):
        found[which] += scheduler.run(request(decoder, policy), np.array(prompts[which]))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected and is_as_before(decoder)


def test_hold_does_not_wait_for_the_end_of_an_answer():
    decoder, policy, scheduler = made()
    found, began = [], threading.Event()

    def work():
        for token in scheduler.run(request(decoder, policy, max_tokens=2000), np.array([50, 60])):
            found.append(token)
            began.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait(60)
    for _ in range(5):
        with scheduler.hold():
            assert not scheduler.is_idle
    thread.join(60)
    assert len(found) == 2000


def test_slot_in_use_is_refused():
    decoder, policy, scheduler = made()
    slot = decoder.open()
    stream = scheduler.run(request(decoder, policy, slot=slot), np.array([50, 60]))
    next(stream)
    with pytest.raises(BackendError, match="in the middle of a turn"):
        next(scheduler.run(request(decoder, policy, slot=slot), np.array([50, 60])))
    stream.close()
    assert len(list(scheduler.run(request(decoder, policy, slot=slot), np.array([50, 60])))) == 12


def test_interrupt_reaches_the_thread_that_drives():
    decoder, policy, scheduler = made()
    stream = scheduler.run(request(decoder, policy), np.array([50, 60]))
    next(stream)

    def interrupted(*_):
        raise KeyboardInterrupt

    healthy, decoder.poll = decoder.poll, interrupted
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    decoder.poll = healthy
    assert is_as_before(decoder) and scheduler.is_idle


@pytest.mark.parametrize(("tokens", "at_once"), [(0, 1), (14, 1), (28, 2), (45, 3)])
def test_requests_wait_where_their_caches_would_take_too_much(tokens, at_once):
    decoder, policy, scheduler = made(cache_bytes=100 * tokens)
    decoder.slot_bytes = lambda slot: 100 * len(slot.text)
    most = 0
    poll = decoder.poll

    def counting(steps):
        nonlocal most
        most = max(most, decoder.opened)
        return poll(steps)

    decoder.poll = counting
    prompts = [[50, token] for token in range(6)]
    streams = [scheduler.run(request(decoder, policy), np.array(prompt)) for prompt in prompts]
    texts = [[next(stream)] for stream in streams]
    for text, stream in zip(texts, streams, strict=True):
        text += list(stream)
    assert texts == [run(FullHead, [], prompt, max_tokens=12) for prompt in prompts]
    assert most == at_once
