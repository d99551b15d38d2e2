"""The smallest memory that suffices: the search, and the control groups that it is made with."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from vt_core.errors import BackendError, OptionError
from vt_core.measure.bench import limits
from vt_core.measure.bench.limits import LimitSearch, Trial, bisect, control_group
from vt_core.measure.bench.processes import Worker
from vt_core.measure.bench.prompts import Prompts


def test_the_limit_is_bracketed_by_few_runs():
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


def test_where_nothing_less_suffices_the_limit_is_what_was_charged():
    found = bisect(lambda limit: Trial(limit, 1.0 if limit is None else 0.1, 800), runs=3)
    assert found["limit_bytes"] == 800 and found["fails_bytes"] == 700


def test_a_variant_that_is_killed_or_late_has_no_speed(monkeypatch):
    class Group:
        def peak(self):
            return 5

    class Groups:
        def __init__(self, limit):
            pass

        def __enter__(self):
            return Group()

        def __exit__(self, *_):
            pass

    def speed(self, job, prompts, group, until):
        raise {0: BackendError("killed"), 1: TimeoutError()}[len(speeds)]

    speeds: list[float] = []
    monkeypatch.setattr(limits, "control_group", Groups)
    monkeypatch.setattr(limits, "drop_caches", lambda: None)
    monkeypatch.setattr(LimitSearch, "_speed", speed)
    for _ in range(2):
        trial, seconds = LimitSearch()._measure({}, Prompts(((1,),), (1,), "x"), 100, 60.0)
        assert trial == Trial(100, 0.0, 5) and seconds < 60
        speeds.append(trial.tokens_per_s)
    speeds.clear()
    with pytest.raises(BackendError):
        LimitSearch()._measure({}, Prompts(((1,),), (1,), "x"), None, None)


def test_a_process_over_the_limit_is_ended():
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


def test_without_the_right_to_empty_the_page_cache_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "_DROP_CACHES", tmp_path / "drop_caches")
    monkeypatch.setattr(limits, "control_group", lambda limit: contextlib.nullcontext())
    with pytest.raises(OptionError, match="must empty the page cache"):
        limits.check()
    (tmp_path / "drop_caches").touch()
    limits.check()


def test_without_the_right_to_make_groups_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    with pytest.raises(OptionError, match="run it on Linux as root"), control_group(1):
        pass


def test_a_worker_that_takes_too_long_is_given_up():
    with pytest.raises(TimeoutError):
        Worker({"name": "full"}, until=0.0)


def test_a_worker_that_fails_says_why():
    with pytest.raises(BackendError, match="variant full ended with code 1: KeyError: 'backend'"):
        Worker({"name": "full"})
