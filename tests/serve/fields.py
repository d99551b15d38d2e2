"""Which fields of requests change what this server, mlx_lm.server and `transformers serve` answer.

By hand: ``python -m tests.serve.fields``. It makes two small models, serves both with each server, sends a
request for every field, and prints a table of what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from converters import convert
from tests.serve.chain import write_chain
from tests.tiny import write_model

CALLS = (
    *("<think>", "Hm", ".", "</think>", "I look."),
    *("<tool_call>", '\n{"name": "weather",', ' "arguments": {"city"', ': "Turin"}}\n', "</tool_call>"),
)
TEMPLATE = (
    "{% if tools %}Call: <tool_call>{{ tools[0].function.name }}</tool_call>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}{{ tool_call.name }}{% endfor %}\n{% endfor %}assistant: "
)
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Turin"]}}, "required": ["city"]}
PARAMETERS["additionalProperties"] = False
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
TWO = [*TOOLS, {"type": "function", "function": {**TOOLS[0]["function"], "name": "news"}}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1]}},
    "required": ["a"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
CHAT = {"messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 12, "temperature": 0}
TEXT = {"prompt": "the cat sat", "max_tokens": 12, "temperature": 0}


@dataclass
class Server:
    """A running server."""

    url: str
    wild: str  #: name of a model whose text depends on everything
    caller: str  #: name of a model that reasons and calls a tool

    def post(self, path: str, body: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
        """Send a request.

        Raises:
            httpx.HTTPStatusError: the server refuses it.
        """
        sent = {"model": model or self.wild, **body}
        reply = httpx.post(f"{self.url}/v1/{path}", json=sent, timeout=240)
        reply.raise_for_status()
        if not body.get("stream"):
            return reply.json()
        return {"events": [json.loads(x[6:]) for x in reply.text.splitlines() if x.startswith("data: {")]}

    def chat(self, model: str | None = None, **options: Any) -> dict[str, Any]:
        return self.post("chat/completions", {**CHAT, **options}, model)

    def said(self, **options: Any) -> str:
        return self.chat(**options)["choices"][0]["message"].get("content") or ""

    def message(self, **options: Any) -> dict[str, Any]:
        """What the model says that reasons and calls."""
        return self.chat(self.caller, **{"max_tokens": 40, **options})["choices"][0]["message"]

    def demanded(self, name: str, *, allowed: bool = False) -> dict[str, Any]:
        """What a model says that must call one of two tools."""
        choice = allowed_tools("required", name) if allowed else function(name)
        return self.chat(tools=TWO, tool_choice=choice, max_tokens=200)["choices"][0]["message"]

    def text(self, **options: Any) -> str:
        return self.post("completions", {**TEXT, **options})["choices"][0]["text"]


def function(name: str) -> dict[str, Any]:
    """A tool as a choice names it."""
    return {"type": "function", "function": {"name": name}}


def allowed_tools(mode: str, name: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [function(name)]}}


def is_json(text: str, wanted: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict) if wanted is None else json.loads(text) == wanted
    except ValueError:
        return False


def named(message: Mapping[str, Any]) -> list[str]:
    return [call["function"]["name"] for call in message.get("tool_calls") or []]


def seeded(server: Server, seed: int, **options: Any) -> str:
    return server.said(temperature=1.0, seed=seed, **options)


def first_half(server: Server) -> str:
    text = server.said()
    return text[len(text) // 2 :][:4]


#: Fields by endpoint, and whether an answer shows their effect.
FIELDS: dict[str, Callable[[Server], bool]] = {
    "models": lambda s: bool(httpx.get(f"{s.url}/v1/models", timeout=60).json()["data"]),
    "`/health`": lambda s: httpx.get(f"{s.url}/health", timeout=60).status_code == 200,
    "`/metrics`": lambda s: "# TYPE" in httpx.get(f"{s.url}/metrics", timeout=60).text,
    "chat": lambda s: bool(s.said()),
    "`max_tokens`": lambda s: s.chat(max_tokens=3)["usage"]["completion_tokens"] == 3,
    "`max_completion_tokens`": lambda s: (
        s.post(
            "chat/completions", {"messages": CHAT["messages"], "temperature": 0, "max_completion_tokens": 3}
        )["usage"]["completion_tokens"]
        == 3
    ),
    "`temperature` (draws differ)": lambda s: len({s.said(temperature=1.5) for _ in range(3)}) > 1,
    "`seed`": lambda s: seeded(s, 1) == seeded(s, 1) != seeded(s, 2),
    "`top_p`": lambda s: seeded(s, 1, top_p=1e-6) == s.said() != seeded(s, 1),
    "`top_k`": lambda s: seeded(s, 1, top_k=1) == s.said() != seeded(s, 1),
    "`min_p`": lambda s: seeded(s, 1, min_p=0.9999) == s.said() != seeded(s, 1),
    "`presence_penalty`": lambda s: s.said(presence_penalty=2, max_tokens=60) != s.said(max_tokens=60),
    "`frequency_penalty`": lambda s: s.said(frequency_penalty=2, max_tokens=60) != s.said(max_tokens=60),
    "`repetition_penalty`": lambda s: s.said(repetition_penalty=3.0, max_tokens=60) != s.said(max_tokens=60),
    "`logit_bias`": lambda s: s.said(logit_bias={"300": 100}, max_tokens=3) != s.said(max_tokens=3),
    "`stop`": lambda s: len(s.said(stop=[first_half(s)])) < len(s.said()),
    "`n`": lambda s: len(s.chat(n=2)["choices"]) == 2,
    "`logprobs`, `top_logprobs`": lambda s: (
        len(
            s.chat(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"][0].get(
                "top_logprobs", []
            )
        )
        == 2
    ),
    "`stream`": lambda s: len(s.chat(stream=True)["events"]) > 2,
    "`stream_options.include_usage`": lambda s: any(
        (event.get("usage") or {}).get("completion_tokens")
        for event in s.chat(stream=True, stream_options={"include_usage": True})["events"]
    ),
    "`response_format`: JSON object": lambda s: is_json(
        s.said(response_format={"type": "json_object"}, max_tokens=200), None
    ),
    "`response_format`: JSON schema": lambda s: is_json(
        s.said(response_format=STRICT, max_tokens=60), {"a": 1}
    ),
    "`tools` (calls are parsed)": lambda s: named(s.message(tools=TOOLS)) == ["weather"],
    "`tool_choice`: required": lambda s: (
        named(s.chat(s.wild, tools=TOOLS, tool_choice="required", max_tokens=200)["choices"][0]["message"])
        == ["weather"]
    ),
    "`tool_choice`: a name": lambda s: named(s.demanded("news")) == ["news"],
    "`tool_choice`: allowed tools": lambda s: (
        named(s.demanded("news", allowed=True)) == ["news"]
        and not named(s.message(tools=TWO, tool_choice=allowed_tools("auto", "news")))
        and named(s.message(tools=TWO, tool_choice=allowed_tools("auto", "weather"))) == ["weather"]
    ),
    "reasoning apart": lambda s: (
        "I look." in (s.message().get("content") or "") and "Hm" not in (s.message().get("content") or "")
    ),
    "`chat_template_kwargs`": lambda s: (
        s.chat(s.caller, chat_template_kwargs={"enable_thinking": False})["usage"]["prompt_tokens"]
        != s.chat(s.caller)["usage"]["prompt_tokens"]
    ),
    "unknown fields are refused": lambda s: refused(s, no_such_field=1),
    "completions": lambda s: bool(s.text()),
    "`echo`": lambda s: s.text(echo=True).startswith("the cat sat"),
    "`logprobs` of completions": lambda s: (
        len(s.post("completions", {**TEXT, "logprobs": 2})["choices"][0]["logprobs"]["token_logprobs"]) == 12
    ),
    "responses": lambda s: (
        s.post("responses", {"input": "the cat", "max_output_tokens": 9, "stream": False})["object"]
        == "response"
    ),
    "prompt of token ids": lambda s: bool(s.text(prompt=[300, 301, 302])),
    "several prompts": lambda s: (
        len(s.post("completions", {**TEXT, "prompt": ["the cat", "a dog"]})["choices"]) == 2
    ),
}


def refused(server: Server, **options: Any) -> bool:
    try:
        server.chat(**options)
    except httpx.HTTPStatusError as error:
        return error.response.status_code < 500
    return False


def outcome(server: Server, check: Callable[[Server], bool]) -> str:
    """What came of a field: ``yes``, ``ignored`` (accepted without its effect), ``refused``, or ``fails``."""
    try:
        return "yes" if check(server) else "ignored"
    except httpx.HTTPStatusError as error:
        return "refused" if error.response.status_code < 500 else "fails"
    except (KeyError, TypeError, IndexError):  # what the field asks for is not there
        return "ignored"
    except (httpx.TransportError, ValueError):
        return "fails"


@contextmanager
def running(command: Sequence[object], port: int, *names: object) -> Iterator[Server]:
    """A server in a process of its own."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(list(map(str, command)), stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise click.ClickException(f"{command[1:4]} has ended") from None
                time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", *map(str, names))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def columns(folder: Path) -> Iterator[tuple[str, list[object], tuple[object, object]]]:
    """The servers: name, command without its port, and the names of the two models."""
    wild = write_model(folder / "wild", "llama")
    config = wild / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    caller = write_chain(folder / "caller", CALLS, set(), TEMPLATE)
    for backend in ("torch", "mlx"):
        code = f"from vt_core.cli import {backend}; {backend}()"
        command = [sys.executable, "-c", code, "serve", "--device", "cpu", "--dtype", "float32"]
        for source in (wild, caller):
            converted = convert(source, folder / f"{source.name}-{backend}", progress=False)
            command += ["--model", f"{source.name}={converted}"]
        yield f"vt-{backend}", command, ("wild", "caller")
    yield "mlx_lm.server", [sys.executable, "-m", "mlx_lm", "server", "--model", wild], (wild, caller)
    transformers = Path(sys.executable).with_name("transformers")
    yield "transformers serve", [transformers, "serve", "--device", "cpu"], (wild, caller)


@click.command()
@click.option("--server", "only", multiple=True, help="Servers to try; default: all.")
def main(only: tuple[str, ...]) -> None:
    """Print the table."""
    table: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command, models in columns(Path(folder)):
            if only and name not in only:
                continue
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with running([*command, "--port", port], port, *models) as server:
                table[name] = []
                for field, check in FIELDS.items():
                    table[name].append(outcome(server, check))
                    click.echo(f"{name}: {field}: {table[name][-1]}", err=True)
    click.echo(f"| field | {' | '.join(table)} |")
    click.echo("|---" * (len(table) + 1) + "|")
    for field, *cells in zip(FIELDS, *table.values(), strict=True):
        click.echo(f"| {field} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
