"""A load test: many clients at once, with cancellations and bad requests.

By hand: ``python -m tests.serve.load --seconds 120 --clients 64``. It makes a tiny model, serves it in a
process of its own, and sends requests to the loopback address for the time given.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.commands import start_cli

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "old", "red", "barn", "by", "sea"]
BAD = (
    {"messages": []},
    {"temperature": -1},
    {"messages": [{"role": "user", "content": "x"}], "nonsense": 1},
    {"messages": [{"role": "user", "content": "cat " * 5000}]},
)


@dataclass
class Outcome:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)  #: requests by what became of them
    wrong: list[str] = field(default_factory=list)  #: texts that are not those of the request alone
    health: list[float] = field(default_factory=list)  #: seconds that ``/health`` took
    late: list[float] = field(default_factory=list)  #: seconds by which the machine woke its client too late


def make_request(rng: random.Random) -> dict[str, Any]:
    """A request out of a set small enough for each to come often."""
    seed = rng.randrange(40)
    own = random.Random(seed)
    words = " ".join(own.choices(WORDS, k=own.randrange(2, 40)))
    messages = [{"role": "user", "content": words}]
    body: dict[str, Any] = {"messages": messages, "max_tokens": own.randrange(1, 60)}
    body["vt"] = {"batch": ("alone", "together")[seed % 2]}
    if seed % 3:
        body |= {"temperature": 1.0, "seed": seed, "top_p": 0.9}
    return body


async def load(url: str, expected: dict[str, str], *, clients: int, seconds: float) -> Outcome:
    """Send requests.

    Args:
        url: of the server.
        expected: texts by the prompt and the seed of their request; see :func:`key`.
        clients: that send at once.
        seconds: that they go on.
    """
    outcome = Outcome()
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

        async def one(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                kind = rng.choices(["whole", "stream", "leave", "bad"], [4, 4, 2, 1])[0]
                outcome.counts[await _send(client, kind, rng, expected, outcome)] += 1

        # In a process of its own: what is measured is not how busy this one is.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            probing = asyncio.get_running_loop().run_in_executor(pool, probe, url, seconds)
            await asyncio.gather(*map(one, range(clients)))
            outcome.health, outcome.late = await probing
    return outcome


def probe(url: str, seconds: float) -> tuple[list[float], list[float]]:
    """Ask for ``/health`` ten times a second; returns the seconds that it took each time, and the seconds by
    which the waits between were too long.
    """
    health, late = [], []
    end = time.monotonic() + seconds
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    while time.monotonic() < end:
        started = time.monotonic()
        connection.request("GET", "/health")
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b'{"status":"ok"}')
        answered = time.monotonic()
        health.append(answered - started)
        time.sleep(0.1)
        late.append(time.monotonic() - answered - 0.1)
    return health, late


def key(body: dict[str, Any]) -> str:
    """What the text of a request depends on."""
    return f"{body['messages'][0]['content']}|{body['max_tokens']}|{body.get('seed')}"


async def _send(
    client: httpx.AsyncClient, kind: str, rng: random.Random, expected: dict[str, str], outcome: Outcome
) -> str:
    address = "/v1/chat/completions"
    if kind == "bad":
        reply = await client.post(address, json=rng.choice(BAD))
        return f"refused {reply.status_code}"
    body = make_request(rng)
    if kind == "whole":
        reply = await client.post(address, json=body)
        if reply.status_code == 429:
            await asyncio.sleep(0.05)
            return "429"
        text = reply.json()["choices"][0]["message"]["content"]
    else:
        text = ""
        async with client.stream("POST", address, json={**body, "stream": True}) as reply:
            if reply.status_code == 429:
                await reply.aread()
                await asyncio.sleep(0.05)
                return "429"
            count = 0
            async for line in reply.aiter_lines():
                if kind == "leave" and count > rng.randrange(1, 8):
                    return "left"
                if line.startswith("data: {"):
                    count += 1
                    choices = httpx.Response(200, content=line[6:]).json()["choices"]
                    text += choices[0]["delta"].get("content", "") if choices else ""
    if text != expected[key(body)]:
        outcome.wrong.append(f"{key(body)}: {text!r} instead of {expected[key(body)]!r}")
    return kind


@contextmanager
def served(directory: Path, *options: object) -> Iterator[tuple[str, int]]:
    """A server of a model directory in a process of its own: its URL and its process id."""
    fixed = ["--model", f"tiny={directory}", "--device", "cpu", "--dtype", "float32", "--port", 0]
    process = start_cli("torch", "serve", *fixed, *options)
    try:
        for line in process.stderr:
            found = json.loads(line)
            if found["event"] == "listening":
                break
        log = threading.Thread(target=process.stderr.read)  # a full pipe would stop the server
        log.start()
        yield found["url"], process.pid
    finally:
        process.terminate()
        process.wait(60)
        log.join()
        process.stdout.close()
        process.stderr.close()


def main() -> None:
    """Run the load test on a tiny model and print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    from converters import convert
    from tests.tiny import write_model
    from vt_core import load as load_model

    with tempfile.TemporaryDirectory() as folder:
        source = write_model(Path(folder) / "hf", "llama")
        directory = convert(source, Path(folder) / "vt", progress=False)
        with load_model(directory, backend="torch", device="cpu", dtype="float32") as alone:
            expected = texts_alone(alone)
        with served(directory, "--cache-mb", 20) as (url, pid):
            run = {"clients": arguments.clients}
            asyncio.run(load(url, expected, seconds=15, **run))  # warm
            print(f"before: {resources(pid)}", flush=True)
            with sampled(pid, arguments.seconds / 8) as sizes:
                outcome = asyncio.run(load(url, expected, seconds=arguments.seconds, **run))
            print(f"after: {resources(pid)}; meanwhile {', '.join(sizes)} MB")
            metrics = httpx.get(f"{url}/metrics").text
    print(dict(outcome.counts))
    print(f"health: {spread(outcome.health)}; waits between too long by: {spread(outcome.late)}")
    print(*(line for line in metrics.splitlines() if line.startswith(("vt_running", "vt_waiting"))), sep="\n")
    print(f"{len(outcome.wrong)} wrong texts", *outcome.wrong[:3], sep="\n")


@contextmanager
def sampled(pid: int, seconds: float) -> Iterator[list[str]]:
    """The resident megabytes of a process, again and again: a leak goes on, a cache fills up."""
    sizes: list[str] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(seconds):
            sizes.append(f"{resident(pid) / 1e6:.0f}")

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        ended.set()
        thread.join()


def spread(seconds: Sequence[float]) -> str:
    """Some quantiles in milliseconds."""
    ordered = sorted(seconds)
    found = {name: ordered[int(len(ordered) * share)] for name, share in (("median", 0.5), ("99 %", 0.99))}
    return ", ".join(
        f"{name} {value * 1e3:.1f} ms" for name, value in {**found, "largest": ordered[-1]}.items()
    )


def resources(pid: int) -> str:
    """What a process holds (Linux)."""
    threads, files = (len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("task", "fd"))
    return f"{resident(pid) / 1e6:.0f} MB, {threads} threads, {files} open files"


def resident(pid: int) -> int:
    """Resident bytes of a process (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def texts_alone(model: Any) -> dict[str, str]:
    """The text of every request that :func:`make_request` makes, each run alone."""
    texts = {}
    rng = random.Random(0)
    for _ in range(400):
        body = make_request(rng)
        if key(body) not in texts:
            options = {name: value for name, value in body.items() if name not in ("messages", "vt")}
            texts[key(body)] = model.generate(body["messages"], batch="alone", **options).text
    return texts


if __name__ == "__main__":
    main()
