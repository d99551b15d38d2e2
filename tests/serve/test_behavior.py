"""Clients that leave, limits, keys, names, the log, and the end of the server."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.commands import error_of, run_cli, start_cli
from tests.serve.running import running, tiny_model
from vt_core import TaskVocabulary
from vt_core.errors import VocabularyError
from vt_core.serve.engine import Task
from vt_core.serve.log import JsonLines
from vt_core.serve.registry import named_tasks

BODY = {"messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 4}
#: More than any test waits for.
ENDLESS = {**BODY, "max_tokens": 200}


class Slow:
    """A model whose steps wait for a gate, or for a time."""

    def __init__(self, model, seconds=0.05):
        self._model = model
        self.seconds = seconds
        self.closed = 0
        self.steps = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, *args):
        try:
            for chunk in self._model.run(*args):
                self.steps += 1
                time.sleep(self.seconds)
                yield chunk
        finally:
            self.closed += 1


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def metric(server, name):
    text = httpx.get(f"{server.url}/metrics").text
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line)
    )


@pytest.fixture(scope="module")
def slow(tiny):
    model = Slow(tiny_model(tiny))
    with running({"m": model}, batch=1, queue=1, keep_alive=0.2, timeout=2.0, max_body=5000) as server:
        yield server


@pytest.fixture
def model(slow):
    model = slow.models["m"]
    until(lambda: metric(slow, "vt_running_requests") == 0)
    return model


def test_client_that_leaves_a_stream_frees_its_place(slow, model):
    before = model.closed
    with httpx.stream("POST", f"{slow.api}/chat/completions", json={**ENDLESS, "stream": True}) as reply:
        next(reply.iter_lines())
    until(lambda: model.closed == before + 1)
    assert model.steps < 100
    until(lambda: metric(slow, "vt_running_requests") == 0)


def test_client_that_leaves_a_waiting_answer_frees_its_place(slow, model):
    before, left = model.closed, metric(slow, "vt_cancelled_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow.api}/chat/completions", json=ENDLESS, timeout=0.5)
    until(lambda: model.closed == before + 1)
    until(lambda: metric(slow, "vt_cancelled_total") == left + 1)


def test_full_queue_answers_429(slow, model, monkeypatch):
    monkeypatch.setattr(model, "seconds", 0.4)
    address = f"{slow.api}/chat/completions"
    threads = [threading.Thread(target=httpx.post, args=(address,), kwargs={"json": BODY}) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: metric(slow, "vt_waiting_requests") == 1)
    for stream in (False, True):
        reply = httpx.post(address, json={**BODY, "stream": stream})
        assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["type"] == "rate_limit_error"
    assert httpx.post(address, json={**BODY, "n": 3}).status_code == 429
    for thread in threads:
        thread.join()


def test_health_answers_while_a_request_runs(slow, model):
    with httpx.stream("POST", f"{slow.api}/chat/completions", json={**ENDLESS, "stream": True}) as reply:
        next(reply.iter_lines())
        started = time.monotonic()
        assert httpx.get(f"{slow.url}/health").status_code == 200
        assert time.monotonic() - started < 0.5


def test_time_limit_ends_requests(slow, model):
    address = f"{slow.api}/chat/completions"
    reply = httpx.post(address, json=ENDLESS, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    with httpx.stream("POST", address, json={**ENDLESS, "stream": True}, timeout=10) as reply:
        assert reply.status_code == 200
        events = [line for line in reply.iter_lines() if line.startswith("data:")]
    assert json.loads(events[-1].removeprefix("data:"))["error"]["code"] == "timeout"


def test_quiet_stream_sends_comments(slow, model, monkeypatch):
    monkeypatch.setattr(model, "seconds", 0.5)
    body = {**BODY, "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{slow.api}/chat/completions", json=body) as reply:
        lines = list(reply.iter_lines())
    assert ": keep-alive" in lines and lines[-2] == "data: [DONE]"


def test_large_bodies_are_refused(slow, model):
    address = f"{slow.api}/chat/completions"
    declared = httpx.post(address, content=b"x" * 6000)
    chunked = httpx.post(address, content=iter([b"x" * 3000] * 2))
    for reply in (declared, chunked):
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


def test_pages_of_other_sites_are_refused(slow, model):
    for headers, code in (
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Host": "evil.example:8080", "Origin": "http://evil.example:8080"}, "wrong_host"),
    ):
        reply = httpx.post(f"{slow.api}/chat/completions", json=BODY, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, code)
        assert "access-control-allow-origin" not in reply.headers
    port = slow.url.rpartition(":")[2]
    same = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert httpx.get(f"{slow.api}/models", headers=same).status_code == 200


def test_allowed_origins_and_hosts(tiny):
    with running({"m": tiny_model(tiny)}, origins=("https://a.example",), hosts=("b.example",)) as server:
        origin = {"Origin": "https://a.example"}
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(f"{server.api}/chat/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        reply = httpx.get(f"{server.api}/models", headers={**origin, "Host": "b.example"})
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://a.example"


def test_key_is_needed_where_one_is_set(tiny):
    with running({"m": tiny_model(tiny)}, api_key="sécret") as server:
        for headers in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "Basic sécret".encode()}):
            reply = httpx.get(f"{server.api}/models", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        right = {"Authorization": "Bearer sécret".encode()}
        assert httpx.get(f"{server.api}/models", headers=right).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def task(model, name, ids):
    directory = model.directory
    digest, counts = directory.manifest.tokenizer_digest, np.ones(len(ids), np.int64)
    return Task(TaskVocabulary(name, digest, model.rows, np.array(ids), counts, examples=1))


def test_tasks_are_chosen_by_name(tiny):
    model = tiny_model(tiny)
    tasks = {
        name: task(model, name, ids) for name, ids in {"a": range(300, 320), "b": range(900, 950)}.items()
    }
    model.set_task(*(each.vocabulary for each in tasks.values()))
    text = model.generate(BODY["messages"], max_tokens=4).text
    sizes = []
    run = model.run

    def recorded(*args):
        sizes.append(model.decoder.head.vocabulary.static_size)
        return run(*args)

    model.run = recorded
    with running({"m": model}, tasks) as server:
        names = [each["id"] for each in httpx.get(f"{server.api}/models").json()["data"]]
        assert names == ["m", "m:a", "m:b"]
        for body in ({}, {"model": "m:a"}, {"model": "m:b"}, {"vt": {"task": "b"}}, {"model": "m"}):
            reply = httpx.post(f"{server.api}/chat/completions", json={**BODY, **body}).json()
            assert reply["choices"][0]["message"]["content"] == text  # exact, whatever the head holds
        union, a, b, again, plain = sizes
        assert (a + 30, again, plain) == (b, b, union) and union == a + 50
        for body in ({"model": "m:c"}, {"model": "m:a", "vt": {"task": "b"}}):
            assert httpx.post(f"{server.api}/chat/completions", json={**BODY, **body}).status_code == 404
        # All at once: they take turns.
        bodies = [{**BODY, "model": f"m:{'ab'[at % 2]}"} for at in range(8)]
        replies = []
        threads = [
            threading.Thread(
                target=lambda body: replies.append(httpx.post(f"{server.api}/chat/completions", json=body)),
                args=(body,),
            )
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
        assert texts == [text] * 8


def test_tasks_of_the_collection_and_of_published_files(tiny, tmp_path, monkeypatch):
    model = tiny_model(tiny)
    vocabulary = task(model, "math", range(300, 320)).vocabulary
    folder = tmp_path / f"tiny-{vocabulary.tokenizer_digest[:12]}"
    folder.mkdir()
    vocabulary.save(folder / "math.vt.json")
    published = tmp_path / "old.json"
    published.write_text(json.dumps(list(range(900, 950))))
    monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path))
    with running({"m": model}, named_tasks([Path("math"), published])) as server:
        names = [each["id"] for each in httpx.get(f"{server.api}/models").json()["data"]]
        assert names == ["m", "m:math", "m:old"]
        body = {**BODY, "model": "m:math"}
        assert httpx.post(f"{server.api}/chat/completions", json=body).status_code == 200
        math = model.decoder.head.vocabulary.static_size
        body = {**BODY, "vt": {"task": "old"}}
        assert httpx.post(f"{server.api}/chat/completions", json=body).status_code == 200
        assert model.decoder.head.vocabulary.static_size == math + 30
    with pytest.raises(VocabularyError, match="which has math"):
        named_tasks([Path("maths")])


def test_lazy_models_are_loaded_and_unloaded(tiny):
    loaded = []

    def load():
        loaded.append(tiny_model(tiny))
        return loaded[-1]

    with running({"m": None, "other": None}, load_model=load, lazy=True, idle=0.3) as server:
        assert metric(server, "vt_loaded_models") == 0 and not loaded
        for count in (1, 2):
            assert httpx.post(f"{server.api}/chat/completions", json=BODY).status_code == 200
            assert len(loaded) == count
            until(lambda: metric(server, "vt_loaded_models") == 0)


def test_log_lines_are_json_without_controls():
    import logging

    record = logging.LogRecord("vt.serve", logging.INFO, "", 0, "answered", None, None)
    record.fields = {"path": "/\x1b[31m\x9b\x7f\u202e\n"}
    line = JsonLines().format(record)
    assert json.loads(line)["path"] == "/\x1b[31m\x9b\x7f\u202e\n"
    assert line.isprintable() and line.isascii()


# The command.


def start(tiny, *options):
    process = start_cli(
        "torch", "serve", "--model", f"m={tiny('llama')[1]}", "--device", "cpu", "--port", 0, *options
    )
    for line in process.stderr:
        found = json.loads(line)
        if found["event"] == "listening":
            return process, found["url"]
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_sigterm_finishes_what_runs_and_takes_nothing_new(tiny):
    process, url = start(tiny, "--drain", 20, "--max-tokens", 400)
    try:
        body = {**BODY, "max_tokens": 400, "logit_bias": {"0": -100, "2": -100}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_sigterm_cuts_what_takes_too_long(tiny):
    process, url = start(tiny, "--drain", 1, "--temperature", 1, "--queue", 200)
    try:
        body, replies = {**BODY, "max_tokens": 400, "n": 64}, []
        address = f"{url}/v1/chat/completions"
        with httpx.stream("POST", address, json={**body, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            whole = threading.Thread(
                target=lambda: replies.append(httpx.post(address, json=body, timeout=60))
            )
            whole.start()
            time.sleep(0.5)  # both run or wait now
            process.send_signal(signal.SIGTERM)
            assert "the server is stopping" in [line for line in lines if line][-1]
        whole.join()
        assert replies[0].status_code == 503
        # Python's own end takes seconds on a busy machine.
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_log_that_nobody_reads_does_not_stop_the_server(tiny):
    process, url = start(tiny)
    try:
        with httpx.Client() as client:
            for _ in range(600):  # a pipe holds 64 KiB
                assert client.get(f"{url}/health", timeout=10).status_code == 200
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_wrong_starts_are_told_in_a_line(tiny, tmp_path):
    directory = tiny("llama")[1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}" in error_of(run_cli("torch", "serve", "--model", directory, "--port", port))
    assert "cannot listen" in error_of(
        run_cli("torch", "serve", "--model", directory, "--host", "no.such.host")
    )
    assert "no such task" in error_of(run_cli("torch", "serve", "--task", tmp_path / "x.vt.json"))
    twice = run_cli("torch", "serve", "--model", f"a={directory}", "--model", f"a={directory}", "--port", 0)
    assert "two models have one name" in error_of(twice)
    assert "temperature" in error_of(run_cli("torch", "serve", "--temperature", "-1"))
    assert run_cli("torch", "serve", "--model", "=x").exit_code == 2
    two = ["--model", f"a={directory}", "--model", f"b={directory}"]
    assert run_cli("torch", "serve", *two, "--revision", "main").exit_code == 2
