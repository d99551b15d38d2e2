"""What each token id stands for: its bytes and its kind, from a `tokenizer.json` and the files beside it.

Two families are supported. Byte-level BPE (GPT-2, Qwen, Llama 3, DeepSeek, SmolLM2) spells every byte as one
printable character; SentencePiece (Llama 2, Gemma) spells a space as `▁` and, where it falls back to
bytes, one byte as `<0x0A>`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import TokenizerError
from vt_core.files.json_files import parse_object, read_bytes
from vt_core.types import Ids
from vt_core.vocab.added_tokens import TokenizerFiles, checked_id, merge_added_tokens, parse_added_tokens

#: SentencePiece's spelling of a space.
SPACE_MARK = "\u2581"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNUSED = re.compile(
    r"[<\[][|\uff5c]?_*(?:unused|reserved|place.?holder|dummy|extra_token|special|pad)(?=\D*\d)[^<>\[\]]*[>\]]"
    r"|<\|extra_\d+\|>|\S*UNUSED_TOKEN_\d+\S*|madeupword\d+",
    re.IGNORECASE,
)
_CONTROL_SHAPE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


class Kind(IntEnum):
    """What an id is."""

    #: No token has this id.
    MISSING = 0
    #: A piece of text.
    ORDINARY = 1
    #: A single byte: a byte-fallback token, or a byte-level token of a byte that is not a character.
    BYTE = 2
    #: Marked special: a control token.
    SPECIAL = 3
    #: Added to the model's vocabulary but not special: chat markers, runs of spaces or line ends.
    ADDED = 4
    #: Unused, reserved or padding: no text and no model output has it.
    UNUSED = 5


@dataclass(frozen=True)
class TokenTable:
    """Bytes and kind of every id of one tokenizer."""

    #: Tokens as the file spells them; None if no token has the id.
    tokens: list[str | None]
    #: Bytes of the text that each token stands for.
    bytes: list[bytes | None]
    #: Values of `Kind`, uint8 ``[size]``.
    kinds: npt.NDArray[np.uint8]

    @classmethod
    def load(cls, path: str | Path) -> TokenTable:
        """Read a `tokenizer.json`, with the tokens that the files beside it add.

        Raises:
            TokenizerError: a file cannot be read.
        """
        return cls.from_json(read_tokenizer_json(path), str(path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "tokenizer.json") -> TokenTable:
        """The table of a parsed `tokenizer.json`.

        Args:
            where: name of the file, for messages.

        Raises:
            TokenizerError: the content is damaged, or of an unsupported family.
        """
        vocab = _model_tokens(data, where)
        added = parse_added_tokens(data.get("added_tokens") or [], where)
        size = 1 + max([-1, *vocab.values(), *added])
        tokens: list[str | None] = [None] * size
        for token, id in vocab.items():
            tokens[id] = token
        values = _decode(data, tokens, where)
        kinds = np.full(size, Kind.MISSING, np.uint8)
        kinds[list(vocab.values())] = Kind.ORDINARY
        _mark_bytes(tokens, values, kinds)
        for id, entry in added.items():
            if tokens[id] != entry.content:
                tokens[id], values[id] = entry.content, entry.content.encode()
            kinds[id] = Kind.SPECIAL if entry.special else Kind.ADDED
        for id, text in enumerate(tokens):
            if text and is_unused(text):
                kinds[id] = Kind.UNUSED
        return cls(tokens, values, kinds)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.bytes)

    def special_ids(self, vocab_rows: int) -> Ids:
        """Ids that are always active: special and added tokens below `vocab_rows`, sorted int64 ``[n]``."""
        ids = np.flatnonzero((self.kinds == Kind.SPECIAL) | (self.kinds == Kind.ADDED))
        return ids[ids < vocab_rows].astype(np.int64)

    def ordinary_ids(self) -> Ids:
        """Ids of ordinary tokens, sorted int64 ``[n]``."""
        return np.flatnonzero(self.kinds == Kind.ORDINARY).astype(np.int64)

    def byte_ids(self) -> Ids:
        """Ids of byte tokens, sorted int64 ``[n]``."""
        return np.flatnonzero(self.kinds == Kind.BYTE).astype(np.int64)

    def text(self, id: int) -> str:
        """The id's text for display; bytes that are not UTF-8 are escaped."""
        value = self.bytes[id]
        return "" if value is None else value.decode("utf-8", "backslashreplace")

    def digest(self) -> str:
        """SHA-256 (hex) over the ids that text can produce and their bytes.

        Leaves out missing, unused, reserved and padding ids, and every token that is spelled like a control
        token: GGUF and Hugging Face files of one tokenizer disagree about which exist and which are special.
        """
        parts: list[bytes] = []
        unused = (self.kinds == Kind.UNUSED).tolist()
        for id, (token, value) in enumerate(zip(self.tokens, self.bytes, strict=True)):
            if not token or value is None or unused[id]:
                continue
            if token[0] in "<[" and _CONTROL_SHAPE.fullmatch(token):
                continue
            parts.append(b"%d %d %b" % (id, len(value), value))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def tokenizer_digest(tokenizer_json: str | Path) -> str:
    """Digest of the tokenizer of a `tokenizer.json`; see `TokenTable.digest`. Raises TokenizerError."""
    return TokenTable.load(tokenizer_json).digest()


def read_tokenizer_json(path: str | Path) -> dict[str, Any]:
    """Content of a `tokenizer.json`, with the tokens that the files beside it add.

    Raises:
        TokenizerError: a file cannot be read.
    """
    return parse_tokenizer_json(read_bytes(path, "tokenizer", TokenizerError), Path(path))


def parse_tokenizer_json(content: bytes, path: Path) -> dict[str, Any]:
    """The value of `content`, read from `path`, with the tokens that the files beside it add.

    Raises:
        TokenizerError: the content is not a tokenizer, or another file cannot be read.
    """
    with _no_collection():
        data = parse_object(content, path, "tokenizer", TokenizerError, strict=False)
    if not isinstance(data.get("model"), dict):
        raise TokenizerError(f"{path}: not a tokenizer.json (it has no 'model').")
    merge_added_tokens(data, TokenizerFiles.beside(path), str(path))
    return data


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection: with half a million merges alive, collections double the time of parsing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _model_tokens(data: Mapping[str, Any], where: str) -> dict[str, int]:
    vocab = data["model"].get("vocab")
    if isinstance(vocab, list) and all(isinstance(v, list) and v and isinstance(v[0], str) for v in vocab):
        return {piece[0]: id for id, piece in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{where}: model.vocab is neither a table nor a list of scored pieces.")
    for id in vocab.values():
        checked_id(id, where)
    return vocab


def is_unused(token: str) -> bool:
    """Whether a token is spelled like a reserved or padding token."""
    # The first character rules out nearly every token and is much faster than the pattern.
    return token.startswith(("<", "[", "m", "M", "u", "U")) and _UNUSED.fullmatch(token) is not None


def _types(node: Any) -> set[str]:
    """All component types and replaced strings inside a decoder or pre-tokenizer description."""
    if isinstance(node, list):
        return set().union(*map(_types, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    found = {node["type"]} if isinstance(node.get("type"), str) else set()
    if node.get("type") == "Replace" and SPACE_MARK in json.dumps(node, ensure_ascii=False):
        found.add("Metaspace")
    return found.union(*(_types(child) for child in node.values()))


def uses_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether a parsed `tokenizer.json` spells bytes in GPT-2's alphabet."""
    return "ByteLevel" in _types(data.get("decoder")) | _types(data.get("pre_tokenizer"))


def _decode(data: Mapping[str, Any], tokens: Iterable[str | None], where: str) -> list[bytes | None]:
    types = _types(data.get("decoder")) | _types(data.get("pre_tokenizer"))
    if uses_byte_level(data):
        return [None if token is None else byte_level_bytes(token) for token in tokens]
    if types & {"Metaspace", "ByteFallback"} or "Metaspace" in _types(data.get("normalizer")):
        return [None if token is None else sentencepiece_bytes(token) for token in tokens]
    raise TokenizerError(
        f"{where}: neither byte-level BPE nor SentencePiece, the two families that are supported "
        f"(decoder and pre-tokenizer: {', '.join(sorted(types)) or 'none'})."
    )


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's alphabet: code point of the printable character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {**{byte: byte for byte in printable}, **{256 + i: byte for i, byte in enumerate(rest)}}


_TO_ALPHABET = {byte: character for character, byte in _byte_alphabet().items()}
# Maps the other Latin-1 characters outside Latin-1, so that encoding them fails.
_FROM_ALPHABET = {**{byte: 0xFFFF for byte in range(256)}, **_byte_alphabet()}


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token. A token with a character outside the alphabet was added, as plain text."""
    try:
        return token.translate(_FROM_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", "surrogatepass")


def byte_level_text(value: bytes) -> str:
    """Bytes in the alphabet of a byte-level tokenizer."""
    return value.decode("latin-1").translate(_TO_ALPHABET)


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece token: `<0x0A>` is that byte, `▁` a space."""
    if len(token) == 6 and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE_MARK, " ").encode("utf-8", "surrogatepass")


def _mark_bytes(
    tokens: Iterable[str | None], values: Iterable[bytes | None], kinds: npt.NDArray[np.uint8]
) -> None:
    for id, (token, value) in enumerate(zip(tokens, values, strict=True)):
        if value is None or len(value) != 1 or token is None:
            continue
        if value[0] >= 0x80 or len(token) == 6:
            kinds[id] = Kind.BYTE
