"""Time of decoding steps and of verification on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

from vt_core.decode.blocks import Block, Draft
from vt_core.decode.costs import Costs
from vt_core.decode.decoder import Decoder
from vt_core.decode.policy import MAX_BLOCK
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.types import Slot, Steps
from vt_core.files.model_dir import ModelDirectory

_PROMPT_TOKENS = 32
_REPEATS = 3


def measure(directory: ModelDirectory, backend: str, quantize: str | None = None) -> tuple[Costs, float]:
    """Measure the costs of exact decoding with the reduced head of the rank prior.

    Loads the model twice, one after the other, and runs a few tens of greedy steps each time.

    Returns:
        The costs, and the seconds of a step with the full head.
    """
    from vt_core import load

    costs = Costs()
    model = load(directory.path, backend=backend, quantize=quantize)
    slot = model.decoder.open()
    steps = _decode(model.decoder, slot, MAX_BLOCK)
    for _, seconds in steps:
        costs.reads.add(1, seconds)
    hidden = [step.hidden for step, _ in steps]
    sampler = Sampler(SamplerSettings(), model.rows)
    for positions in (1, MAX_BLOCK):
        drafts = [Draft(position, ()) for position in range(positions)]
        times = []
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            model.decoder.verify([Block(hidden[:positions], drafts, sampler)])
            times.append(time.perf_counter() - started)
        costs.add_verification(positions, _median(times[1:]))
    model.decoder.close(slot)
    del model, steps, hidden
    full = load(directory.path, backend=backend, head="full", quantize=quantize).decoder
    full_step_s = _median(seconds for _, seconds in _decode(full, full.open(), MAX_BLOCK))
    return costs, full_step_s


def _decode(decoder: Decoder[Any, Any], slot: Slot[Any], count: int) -> list[tuple[Steps[Any], float]]:
    """Run that many steps after a short prompt. Returns each step and its seconds."""
    prompt = decoder.head.vocabulary.ids[:_PROMPT_TOKENS].copy()
    slot.wants_confidence = True
    step = decoder.prefill(slot, prompt)
    decoder.poll(step)
    steps = []
    for _ in range(count):
        started = time.perf_counter()
        step = decoder.step(slot, decoder.poll(step)[0])
        decoder.poll(step)
        steps.append((step, time.perf_counter() - started))
    return steps


def _median(seconds: Iterable[float]) -> float:
    return statistics.median(list(seconds))
