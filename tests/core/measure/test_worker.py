"""Workers and their processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.conftest import backend_params
from vt_core.errors import BackendError, PromptError
from vt_core.measure.job import Job
from vt_core.measure.runner import serve
from vt_core.measure.worker import Worker

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", backend_params()[:1])
def test_worker_runs_requests_and_survives_refused_prompts(backend, tiny):
    job = Job("exact", backend=backend, model=str(tiny("llama")[1]), head="prealloc", device="cpu")
    with Worker(job) as worker:
        assert worker.about["device"] == "cpu" and worker.about["load_s"] > 0
        worker.warm_up([3, 4, 5], max_tokens=2)
        with pytest.raises(PromptError, match="the prompt has"):
            worker.generate("z" * 9000, max_tokens=4)
        by_ids, by_text = worker.generate([3, 4, 5], max_tokens=4), worker.generate("ab", max_tokens=4)
        assert 0 < by_ids["ttft_s"] <= by_ids["e2e_s"] and len(by_ids["token_ids"]) <= 4
        assert by_text["finish_reason"] in ("stop", "length")
        assert worker.memory()["peak_bytes"] >= worker.memory()["idle_bytes"] > 0
        assert worker.usage()["cpu_s"] > 0
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class FakeModel:
    """Stands in for a loaded model; a request teaches it a row."""

    def __init__(self):
        self.learned = 0

    def stream(self, prompt, max_tokens, **how):
        class Result:
            def __init__(self, rows):
                self.rows = rows

            def to_dict(self):
                return {"token_ids": [1], "learned_rows": self.rows}

        class Chunk:
            token_id, result = 1, Result(self.learned)

        self.learned += 1
        yield Chunk()

    def forget_learned(self):
        self.learned = 0


def test_warm_up_leaves_nothing_learned(monkeypatch):
    from vt_core.measure import runner

    def start(self, job):
        self._model, self._how = FakeModel(), {}
        self.device, self.dtype = "cpu", "float32"

    monkeypatch.setattr(runner.VtRunner, "__init__", start)
    monkeypatch.setattr("vt_core.decode.backend.stock_backend", lambda name: None)
    job = {"name": "exact", "backend": "torch", "model": "m", "head": "prealloc"}
    call = [[7], {"max_tokens": 1}]
    lines = [job, ["warm_up", *call], ["generate", *call], ["generate", *call]]
    out = io.StringIO()
    serve(map(json.dumps, lines), out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[0]["device"] == "cpu"
    assert [answer["learned_rows"] for answer in answers[1:]] == [0, 0, 1]


def test_late_worker_times_out():
    with pytest.raises(TimeoutError):
        Worker(Job("full", backend="torch", model="m", head="full"), until=0.0)


def test_failed_worker_reports_the_cause():
    # A stock job without its copy is a mistake of the caller, so the process fails with a traceback.
    with pytest.raises(BackendError, match="variant stock ended with code 1: AssertionError: the stock"):
        Worker(Job("stock", backend="torch", model="m", head=None))
    with pytest.raises(BackendError, match="variant full: unknown backend 'abacus'"):
        Worker(Job("full", backend="abacus", model="m", head="full"))


def test_process_ends_with_its_parent(tmp_path):
    # The parent starts a runner, notes its id and is killed; the runner is loading at that time.
    code = """
import os, signal, subprocess, sys
runner = subprocess.Popen([sys.executable, "-m", "vt_core.measure.runner"], stdin=subprocess.PIPE)
print(runner.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    until = time.monotonic() + 60
    with suppress(ProcessLookupError):
        while time.monotonic() < until and _runs(pid):
            time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has collected yet."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")
