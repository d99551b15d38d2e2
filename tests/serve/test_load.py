"""Many clients for a few seconds; ``load.py`` says how to run it for longer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.serve.load import load, served, texts_alone
from tests.serve.test_behavior import until


@pytest.mark.slow
def test_texts_are_those_of_requests_alone(tiny, reference):
    expected = texts_alone(reference)
    with served(tiny("llama")[1], "--queue", 40, "--cache-mb", 10) as (url, _):
        outcome = asyncio.run(load(url, expected, clients=64, seconds=4))
        until(lambda: "vt_running_requests 0.0" in httpx.get(f"{url}/metrics").text)
        assert "vt_waiting_requests 0.0" in httpx.get(f"{url}/metrics").text
    assert outcome.wrong == []
    counts = outcome.counts
    assert counts["whole"] and counts["stream"] and counts["left"] and counts["refused 400"]
    assert set(counts) <= {"whole", "stream", "left", "leave", "refused 400", "429"}
    # The machine may do other things besides: its delays are not the server's.
    assert max(outcome.health) < 0.1 + 10 * max(outcome.late)
