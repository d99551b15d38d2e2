"""llguidance's view of a model's tokenizer, and compiled grammars for it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vt_core.decode.constraints.constraint import Constraint, first_line
from vt_core.errors import BackendError, ConstraintError
from vt_core.types import Ids
from vt_core.vocab.token_bytes import Kind, TokenTable
from vt_core.vocab.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vt_core.decode.constraints.grammar import Grammar

#: Grammars whose compiled form and literals are kept.
_KEPT = 32


def library() -> Any:
    """The module llguidance.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise BackendError(
            "json_schema, regex and grammar need llguidance, which is not installed; install it with: "
            "pip install 'vt[constraints]'"
        ) from error


class Engine:
    """Makes the constraints of one model. Building one takes about 4 us a token: 1 s for Gemma's 262,144."""

    def __init__(
        self, table: TokenTable, rows: int, eos_ids: Collection[int], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """
        Args:
            table: bytes and kinds of the model's tokens.
            rows: rows that have a token. No other id is ever allowed.
            eos_ids: full ids that end an answer, at least one.
            encode: ids of a text without special tokens, by the model's own tokenizer.
        """
        self._rows = rows
        self._eos = np.array(sorted(eos_ids), dtype=np.int64)
        tokens = _Tokens(table, rows, self._eos, encode)
        self._tokenizer = _tokenizer(tokens, self._eos)
        self._literals = lru_cache(_KEPT)(self._find_literals)
        self._compiled = lru_cache(_KEPT)(self._compile)

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows: int, eos_ids: Collection[int]) -> Engine:
        """The engine of a model with this tokenizer.

        Raises:
            ConstraintError: no token ends a text.
        """
        if not eos_ids:
            raise ConstraintError(
                "this model names no token that ends a text; no answer can follow a grammar"
            )
        return cls(
            TokenTable.load(tokenizer.path),
            rows,
            eos_ids,
            tokenizer.encode_output,
        )

    def start(self, grammar: Grammar) -> Constraint:
        """The constraint of a new answer.

        Raises:
            ConstraintError: this tokenizer cannot write what the grammar asks for.
        """
        return Constraint(self._compiled(grammar).deep_copy(), self._rows, self._eos)

    def literals(self, grammar: Grammar) -> Ids:
        """Full ids of the tokens that the literal texts of a grammar can be written with, sorted."""
        return self._literals(grammar)

    def _compile(self, grammar: Grammar) -> Any:
        return _matcher(self._tokenizer, grammar.compiled, grammar.option)

    def _find_literals(self, grammar: Grammar) -> Ids:
        texts = grammar.literals
        if not texts:
            return self._eos
        # The tokens that such a rule allows first are the substrings of its text.
        rules = [f"S{at}: %regex {json.dumps({'substring_chars': text})}" for at, text in enumerate(texts)]
        start = "start: " + " | ".join(f"S{at}" for at in range(len(texts)))
        lark = library().LLMatcher.grammar_from_lark("\n".join([start, *rules]))
        matcher = library().LLMatcher(self._tokenizer, lark, log_level=0)
        found = Constraint(matcher, self._rows, self._eos).allowed
        return np.flatnonzero(found)


class _Tokens:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(
        self, table: TokenTable, rows: int, eos: Ids, encode: Callable[[str], Sequence[int]]
    ) -> None:
        values = [value or b"" for value in table.bytes[:rows]]
        self.tokens = [*values, *([b""] * (rows - len(values)))]  #: read once, by the library
        self._rows = rows
        kinds = table.kinds[:rows]
        special = np.flatnonzero((kinds == Kind.SPECIAL) | (kinds == Kind.UNUSED))
        # An EOS that is not marked as special must not be written as text: the answer would end there.
        self.special_token_ids = np.union1d(special, eos).tolist()
        self.eos_token_id = int(eos[0])
        self._special = frozenset(self.special_token_ids)
        self._encode = encode
        self.library: Any = None  #: the library's tokenizer

    def __call__(self, text: bytes) -> Sequence[int]:
        """Tokens of a text that the grammar forces. They are only proposals, but must spell the text."""
        if self.library is None:
            return []  # the library tries whether bytes are taken
        if (ids := self._spelled(text, b"")) is not None:
            return ids
        # A SentencePiece tokenizer puts a space in front of a text. Not in front of what follows a line end.
        if (ids := self._spelled(text, b"\n")) is not None:
            return ids
        greedy: Sequence[int] = self.library.greedy_tokenize(text.decode())
        return greedy

    def _spelled(self, text: bytes, before: bytes) -> Sequence[int] | None:
        """Ids of ``text`` as the tokenizer writes it after ``before``; None if they do not spell it."""
        ids = list(self._encode((before + text).decode()))
        if any(token in self._special or token >= self._rows for token in ids):
            return None
        spelled = b""
        for at in range(len(ids) - 1, -1, -1):
            spelled = self.library.decode_bytes([ids[at]]) + spelled
            if spelled == text and (before or at == 0):
                return ids[at:]
        return ids if spelled == text else None


def _tokenizer(tokens: _Tokens, eos: Ids) -> Any:
    # Without slices: they double the time to build, and masks take 40 us on Gemma either way.
    tokenizer = library().LLTokenizer(library().TokenizerWrapper(tokens), eos_token=eos.tolist(), slices=[])
    tokens.library = tokenizer
    tokens.tokens.clear()  # 20 MB for Gemma, which the library has copied
    return tokenizer


def check(compiled: str, option: str) -> None:
    """Check that a grammar compiles and allows some text, with a tokenizer of single bytes.

    Raises:
        ConstraintError: it does not.
    """
    _matcher(_bytes_tokenizer(), compiled, option)


@lru_cache(1)
def _bytes_tokenizer() -> Any:
    end = 256
    values: list[bytes | None] = [*(bytes([byte]) for byte in range(end)), b""]
    kinds = np.full(end + 1, Kind.BYTE, np.uint8)
    kinds[end] = Kind.SPECIAL
    tokens = _Tokens(
        TokenTable([None] * (end + 1), values, kinds),
        end + 1,
        np.array([end]),
        lambda text: list(text.encode()),
    )
    return _tokenizer(tokens, np.array([end]))


def _matcher(tokenizer: Any, compiled: str, option: str) -> Any:
    """A matcher at the beginning of an answer; raises as :meth:`Engine.start`."""
    matcher = library().LLMatcher(tokenizer, compiled, log_level=0)
    if matcher.is_error():
        raise ConstraintError(f"{option} cannot be enforced ({first_line(matcher.get_error())})")
    if warnings := matcher.get_grammar_warnings():
        raise ConstraintError(f"{option} cannot be enforced in full ({first_line(warnings[0])})")
    matcher.compute_bitmask()
    error = matcher.get_error() if matcher.is_error() else ""
    if "NoExtension" in error or (not error and matcher.is_stopped() and not matcher.is_accepting()):
        raise ConstraintError(f"{option} allows no text at all, so no answer can follow it")
    matcher.compute_ff_tokens()  # fails where the grammar forces a text without end
    if matcher.is_error():
        raise ConstraintError(f"{option} cannot be enforced ({first_line(matcher.get_error())})")
    return matcher
