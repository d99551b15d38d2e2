"""Clients that send or read byte by byte, or nothing at all."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPResponse

import pytest

from tests.serve.running import running, tiny_model
from vt_core.model import Chunk

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps({"messages": [{"role": "user", "content": "cat"}], "max_tokens": 2}).encode()
LONG = "x" * 12_000_000  # more than the system's buffers of a connection hold


class Chatty:
    """A model whose answer is long, and comes after a while."""

    def __init__(self, model):
        self._model = model
        self.text, self.seconds = "", 0.0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, ids, options, slot=None, shown=None):
        time.sleep(self.seconds)
        yield Chunk(self.text, 5)
        yield Chunk("", None, replace(self._model.generate([5], max_tokens=1), text=self.text))


@pytest.fixture(scope="module")
def server(tiny):
    with running({"m": Chatty(tiny_model(tiny))}, client_seconds=0.6, cache_bytes=0) as server:
        yield server


@contextmanager
def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def post(path, length):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def answered(connection):
    """The status and the body of one whole answer, in however many pieces it arrives."""
    with HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read()


def trickle(connection, content):
    """Send byte by byte until the server closes the connection; returns what it answered."""
    answer = b""
    connection.settimeout(0.05)
    for at in range(len(content)):
        try:
            connection.sendall(content[at : at + 1])
            received = connection.recv(4096)
        except TimeoutError:
            continue
        except ConnectionError:
            return answer
        if not received:
            return answer
        answer += received
    raise AssertionError("the server has read it all")


def test_client_that_sends_nothing_is_disconnected(server):
    with connected(server) as connection:
        started = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - started < 10


def test_slow_headers_are_cut(server):
    with connected(server) as connection:
        assert trickle(connection, REQUEST[:-2] + b"X: y\r\n" * 100) == b""


def test_slow_headers_of_a_later_request_are_cut(server):
    with connected(server) as connection:
        connection.sendall(REQUEST)
        assert answered(connection)[0] == 200
        assert trickle(connection, REQUEST[:-2] + b"X: y\r\n" * 100) == b""


def test_endless_headers_are_cut(server):
    with connected(server) as connection, pytest.raises(ConnectionError):
        connection.sendall(REQUEST[:-2])
        for _ in range(1000):
            connection.sendall(b"X: " + b"y" * 10_000 + b"\r\n")
        connection.recv(1)


def test_slow_body_is_refused(server):
    with connected(server) as connection:
        connection.sendall(post("/v1/chat/completions", 1000))
        answer = trickle(connection, b" " * 900)
        assert b" 408 " in answer and b"body_timeout" in answer


def test_slow_body_that_nobody_wants_is_cut(server):
    with connected(server) as connection:
        connection.sendall(post("/nothing", 1000))
        assert b" 404 " in trickle(connection, b" " * 900)


def test_client_that_does_not_read_is_cut(server):
    model = server.models["m"]
    model.text = LONG
    try:
        with connected(server) as connection:
            connection.sendall(post("/v1/chat/completions", len(BODY)) + BODY)
            time.sleep(3)
            received = 0
            with pytest.raises(ConnectionError):
                while piece := connection.recv(1 << 20):
                    received += len(piece)
                raise ConnectionError("closed")
        assert received < len(LONG)
    finally:
        model.text = ""


def test_slow_answer_is_not_cut(server):
    model = server.models["m"]
    model.text, model.seconds = "hello", 1.5
    try:
        with connected(server) as connection:
            connection.sendall(post("/v1/chat/completions", len(BODY)) + BODY)
            assert b'"content":"hello"' in answered(connection)[1]
            connection.sendall(REQUEST)
            assert answered(connection)[0] == 200
    finally:
        model.text, model.seconds = "", 0.0
