"""Requests per second and time to the first token of the server, beside other servers.

    python -m benchmarks.serving --model MODEL_DIR --out FILE.json

serves a model directory with vt-torch and vt-mlx, and its plain copy with mlx_lm.server and `transformers
serve`, where these are installed, one server after the other. For each number of clients, every client sends
streamed greedy chat requests of a fixed length one after the other. Requests go to the loopback address only.

MLX's Linux CPU build multiplies slowly unless an optimized BLAS is preloaded, see docs/limits.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import click
import httpx

from converters.export import stock_copy
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.machine import machine

PROMPTS = [
    json.loads(line)["input"] for line in Path(__file__).with_name("prompts.jsonl").read_text().splitlines()
]
#: Clients, and requests of all of them together.
LOADS = ("1:8", "8:24", "32:64")
#: Most seconds of a load. What is not answered by then has failed.
LONGEST_S = 120
#: Seconds between looks at a server's memory.
SAMPLE_S = 0.1


@dataclass
class Server:
    """A server to measure."""

    name: str
    command: list[str]
    model: str  #: as requests name it
    port: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  #: seconds from the start to the first answer
    idle: int = 0  #: resident bytes then
    loads_begun: bool = False  #: whether it has answered, so that a lost connection is a failed request
    loads: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while True:
            try:
                asyncio.run(run(self, 1, 1, 1))
                break
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise click.ClickException(f"{self.name} ended with {self.process.returncode}") from None
                time.sleep(0.1)
        self.loads_begun = True
        self.started, self.idle = time.monotonic() - began, self.resident()

    def resident(self) -> int:
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)

    def stop(self) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class StreamError(Exception):
    """An event of a stream tells of an error."""


async def first_token(client: httpx.AsyncClient, body: dict[str, Any], began: float) -> float | None:
    """Send a request and read all of its answer; seconds to the first text, if there was any.

    Raises:
        StreamError: the server tells of an error within the stream.
    """
    first = None
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "choices" not in event:
                raise StreamError(line)
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.monotonic() - began
    return first


async def run(server: Server, clients: int, requests: int, tokens: int) -> dict[str, Any]:
    """Send requests and measure them."""
    numbers = iter(range(requests))
    firsts: list[float] = []
    failures: list[str] = []
    resident = [server.resident()]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=600) as client:

        async def work() -> None:
            for number in numbers:
                # No prompt comes twice, or caches of prompts would be measured.
                prompt = f"{clients}.{number}: {PROMPTS[number % len(PROMPTS)]}"
                body = {
                    "model": server.model,
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": tokens,
                    "temperature": 0,
                    "stream": True,
                }
                began = time.monotonic()
                try:
                    first = await first_token(client, body, began)
                except (httpx.TransportError, StreamError) as error:
                    if not server.loads_begun:
                        raise
                    failures.append(repr(error))
                    continue
                firsts.append(time.monotonic() - began if first is None else first)

        async def watch() -> None:
            while True:
                await asyncio.sleep(SAMPLE_S)
                resident.append(server.resident())

        watching = asyncio.create_task(watch())
        began = time.monotonic()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(work() for _ in range(clients))), LONGEST_S)
        seconds = time.monotonic() - began
        watching.cancel()
    cuts = quantiles(firsts, n=100, method="inclusive") if len(firsts) > 1 else (firsts or [None]) * 99
    return {
        "clients": clients,
        "requests": requests,
        "failed": requests - len(firsts),
        "first_failure": failures[0] if failures else None,
        "requests_per_s": len(firsts) / seconds,
        "ttft_p50_s": cuts[49],
        "ttft_p99_s": cuts[98],
        "resident_bytes": max(resident),
    }


def servers(model: Path, plain: Path, dtype: str, only: Sequence[str]) -> list[Server]:
    """The servers to compare."""

    def port() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    found = []
    for backend in ("torch", "mlx"):
        code = f"from vt_core.cli import {backend}; {backend}()"
        options = ["--model", f"m={model}", "--device", "cpu", "--batch", "32"]
        options += ["--dtype", dtype] if backend == "torch" else ["--dtype", "float32"]
        at = port()
        command = [sys.executable, "-c", code, "serve", "--port", str(at), *options]
        found.append(Server(f"vt-{backend}", command, "m", at))
    at = port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(plain), "--port", str(at)]
    found.append(Server("mlx_lm.server", command, str(plain), at))
    at = port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(plain), "--port", str(at)]
    command += ["--device", "cpu", "--dtype", dtype]
    found.append(Server("transformers serve", command, str(plain), at))
    at = port()
    batched = [*command[:4], str(at), *command[5:], "--continuous-batching"]
    batched += ["--cb-max-memory-percent", "0.2"]  # of the free memory; the default takes nearly all
    found.append(Server("transformers serve, batching", batched, str(plain), at))
    return [server for server in found if not only or server.name in only]


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tokens", default=24, show_default=True, help="Tokens of an answer.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--server", "only", multiple=True, help="Servers to measure; default: all.")
@click.option("--load", "loads", multiple=True, default=LOADS, show_default=True, help="CLIENTS:REQUESTS.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    model: Path, tokens: int, dtype: str, only: tuple[str, ...], loads: tuple[str, ...], out: Path
) -> None:
    plain = stock_copy(ModelDirectory.open(model))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which stops the server that runs
    measured = servers(model.resolve(), plain, dtype, only)
    for server in measured:
        try:
            server.start()
            click.echo(
                f"{server.name}: first answer after {server.started:.1f} s, {server.idle / 1e6:.0f} MB"
            )
            for clients, requests in [map(int, load.split(":")) for load in loads]:
                server.loads.append(asyncio.run(run(server, clients, requests, tokens)))
                click.echo(f"{server.name}: {server.loads[-1]}")
        finally:
            server.stop()
    result = {
        "machine": machine(),
        "tokens": tokens,
        "servers": [
            {"name": each.name, "start_s": each.started, "idle_bytes": each.idle, "loads": each.loads}
            for each in measured
        ],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
