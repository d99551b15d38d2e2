"""The search for the smallest sufficient memory, and its control groups."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from vt_core.errors import BackendError, OptionError
from vt_core.measure import cgroup, memory_limit
from vt_core.measure.cgroup import control_group
from vt_core.measure.job import Job
from vt_core.measure.memory_limit import LimitSearch, Trial, bisect
from vt_core.measure.prompts import Prompts

pytestmark = pytest.mark.slow


def test_bisection_brackets_the_limit():
    asked = []

    def measure(limit):
        asked.append(limit)
        # Full speed from 300 bytes on, three quarters of it below, nothing below 200.
        speed = 10.0 if limit is None or limit >= 300 else 7.5 if limit >= 200 else 0.0
        return Trial(limit, speed, 1000)

    found = bisect(measure, runs=6)
    assert asked[:3] == [None, 500, 250] and len(asked) == 7
    assert found["fails_bytes"] < 300 <= found["limit_bytes"]
    assert found["limit_bytes"] - found["fails_bytes"] <= 1000 / 2**6 + 1
    assert found["tokens_per_s"] == 10 and found["charged_bytes"] == 1000
    assert found["trials"][0] == [500, 10.0]


def test_limit_is_what_was_charged_where_less_never_suffices():
    found = bisect(lambda limit: Trial(limit, 1.0 if limit is None else 0.1, 800), runs=3)
    assert found["limit_bytes"] == 800 and found["fails_bytes"] == 700


class FakeWorker:
    """Takes a second for five tokens; fails as ``failure`` says."""

    failure: Exception | None = None

    def __init__(self, job, before, until):
        if self.failure is not None:
            raise self.failure

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def warm_up(self, prompt, max_tokens):
        assert prompt == (9,)

    def generate(self, prompt, max_tokens):
        assert prompt in ((1,), (2,))
        return {"token_ids": [0] * 5, "e2e_s": 1.0}


def test_variant_that_is_killed_or_late_has_no_speed(monkeypatch):
    class Group:
        enter = None

        def peak(self):
            return 5

    monkeypatch.setattr(memory_limit, "control_group", lambda limit: contextlib.nullcontext(Group()))
    monkeypatch.setattr(memory_limit, "drop_caches", lambda: None)
    monkeypatch.setattr(memory_limit, "Worker", FakeWorker)
    job = Job("full", backend="torch", model="m", head="full")
    prompts = Prompts(((1,), (2,), (3,)), (9,), "x")
    told = []
    found = LimitSearch(runs=2).run(job, prompts, told.append)
    assert found["tokens_per_s"] == 5 and found["trials"] == [[2, 5.0], [1, 5.0]] and found["prompts"] == 2
    assert told == ["full in all memory", "full in 0 MB", "full in 0 MB"]

    for failure in (BackendError("killed"), TimeoutError()):
        monkeypatch.setattr(FakeWorker, "failure", failure)
        trial, seconds = LimitSearch()._measure(job, prompts, 100, 60.0)
        assert trial == Trial(100, 0.0, 5) and seconds < 60
        with pytest.raises(type(failure)):
            LimitSearch()._measure(job, prompts, None, None)


def test_process_over_the_limit_is_killed():
    try:
        with control_group(None):
            pass
    except OptionError as error:
        pytest.skip(str(error))
    code = "a = bytearray(200_000_000); print(len(a))"
    ran = []
    for limit in (100 << 20, 400 << 20):
        with control_group(limit) as group:
            done = subprocess.run([sys.executable, "-c", code], preexec_fn=group.enter, capture_output=True)
            ran.append(done.returncode)
            assert 50 << 20 < group.peak() <= limit
            path = group.path
        assert not path.exists()
    assert ran[0] != 0 and ran[1] == 0


def test_missing_right_to_empty_the_page_cache_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "_DROP_CACHES", tmp_path / "drop_caches")
    monkeypatch.setattr(cgroup, "control_group", lambda limit: contextlib.nullcontext())
    with pytest.raises(OptionError, match="must empty the page cache"):
        cgroup.check()
    (tmp_path / "drop_caches").touch()
    cgroup.check()


def test_missing_right_to_make_groups_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    with pytest.raises(OptionError, match="run it on Linux as root"), control_group(1):
        pass
