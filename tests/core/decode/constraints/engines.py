"""Small tokenizers for tests of grammars, and answers made of random allowed tokens."""

from __future__ import annotations

from functools import cache

import numpy as np

from vt_core.decode.constraints import Engine
from vt_core.vocab.token_bytes import Kind, TokenTable

#: Tokens of several characters, beside all bytes. The last ones are special.
WORDS = [
    b'"',
    b'{"',
    b'": ',
    b'", "',
    b'"}',
    b"na",
    b"name",
    b"true",
    b"12",
    b"abc",
    " é".encode(),
    b"\n",
    b"  ",
]
SPECIALS = [b"<end>", b"<unused1>", b"<turn>"]
FIRST_SPECIAL = 256 + len(WORDS)
END, UNUSED, TURN = range(FIRST_SPECIAL, FIRST_SPECIAL + 3)
#: Rows without a token come last.
ROWS = FIRST_SPECIAL + 5


def encode(text):
    """Longest tokens first."""
    data, ids = text.encode(), []
    values = [*(bytes([byte]) for byte in range(256)), *WORDS]
    while data:
        best = max((len(value), token) for token, value in enumerate(values) if data.startswith(value))
        ids.append(best[1])
        data = data[best[0] :]
    return ids


def table(turn=Kind.SPECIAL):
    values = [*(bytes([byte]) for byte in range(256)), *WORDS, *SPECIALS]
    kinds = np.full(len(values), Kind.ORDINARY, np.uint8)
    kinds[[END, UNUSED, TURN]] = Kind.SPECIAL, Kind.UNUSED, turn
    return TokenTable([None] * len(values), values, kinds)


@cache
def engine():
    """An engine whose answers end with ``END`` or ``TURN``."""
    return Engine(table(), ROWS, {END, TURN}, encode)


def text_of(tokens):
    return b"".join(table().bytes[token] for token in tokens).decode()


def walk(constraint, rng, limit=400):
    """Random allowed tokens until the answer may end; None if it did not in ``limit`` tokens."""
    tokens = []
    while len(tokens) < limit:
        allowed = np.flatnonzero(constraint.allowed)
        ends = constraint.accepts(END)
        if ends and (constraint.finished or rng.random() < 0.3):
            return tokens
        # Ends of strings and lists, so that an answer is short.
        ordinary = allowed[allowed < FIRST_SPECIAL]
        closing = [token for token in ordinary.tolist() if bytes(table().bytes[token])[:1] in b'"}]']
        pool = closing if closing and rng.random() < 0.4 else ordinary
        token = int(rng.choice(pool))
        constraint.advance(token)
        tokens.append(token)
    return None


def accepts(grammar, text):
    """Whether a grammar allows exactly this text, byte by byte."""
    constraint = engine().start(grammar)
    data = list(text.encode())
    return len(constraint.prefix(data)) == len(data) and _ends_after(constraint, data)


def _ends_after(constraint, data):
    constraint._matcher.consume_tokens(data)
    constraint._allowed = None
    return constraint.accepts(END)
