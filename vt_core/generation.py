"""The loop: a prompt of full ids in, full ids out, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from vt_core.backend import Decoder, Step
from vt_core.sampling import Sampler
from vt_core.vocabulary import Ids


def decode(
    decoder: Decoder, prompt: Ids, *, sampler: Sampler, max_tokens: int, eos_ids: Collection[int]
) -> Iterator[int]:
    """Generate up to ``max_tokens`` full ids; an id of ``eos_ids`` is the last one yielded.

    The ids of the prompt are made active for this request. However it ends, also when the caller stops
    listening, the decoder is left as it was before.
    """
    sampler.extend(prompt)
    greedy = sampler.settings.plain_greedy
    decoder.begin()
    try:
        decoder.head.add(prompt)
        step = decoder.prefill(prompt)
        for position in range(max_tokens):
            more = position + 1 < max_tokens
            # Queued before this token is known, so that the device does not wait for the host.
            ahead = decoder.follow(step) if greedy and more and decoder.can_follow else None
            token = _choose(decoder, sampler, step, position)
            yield token
            if token in eos_ids or not more:
                return
            sampler.extend(np.array([token]))
            step = decoder.step(token) if ahead is None else ahead
    finally:
        decoder.end()


def _choose(decoder: Decoder, sampler: Sampler, step: Step, position: int) -> int:
    if sampler.settings.plain_greedy:
        return decoder.poll(step)
    return sampler.choose(decoder.logits(step), decoder.head.vocabulary.ids, position)
