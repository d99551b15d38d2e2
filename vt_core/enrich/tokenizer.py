"""Merged tokens in a tokenizer.json: how they are spelled, and what a tokenizer must be like to hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vt_core.errors import TokenizerError, shorten
from vt_core.vocab.merges import Merges
from vt_core.vocab.token_bytes import (
    SPACE_MARK,
    Kind,
    TokenTable,
    byte_level_text,
    is_unused,
    read_tokenizer_json,
    sentencepiece_bytes,
    uses_byte_level,
)
from vt_core.vocab.tokenizer import library_errors, load_tokenizer

if TYPE_CHECKING:
    import tokenizers


class MergeableTokenizer:
    """A tokenizer that takes merged tokens: into its vocabulary, without merge rules.

    Encoding stays as it was, for byte-pair encoding reaches a token by its rules only.
    """

    def __init__(self, path: Path) -> None:
        """Read a `tokenizer.json` and the files beside it.

        Raises:
            TokenizerError: a file cannot be read, or the tokenizer cannot hold merged tokens.
        """
        self.path = path
        self.known = Merges.beside(path)  #: merged tokens that it has already
        self._data = read_tokenizer_json(path)
        self.table = TokenTable.from_json(self._data, str(path))
        model = self._data["model"]
        kind = model.get("type", "BPE")
        if kind != "BPE" or not isinstance(model.get("vocab"), dict):
            raise TokenizerError(
                f"{path}: a {kind} tokenizer would use added pieces when it encodes prompts; merged tokens "
                "need byte-pair encoding (BPE)."
            )
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise TokenizerError(
                    f"{path}: pieces have a {name} ({shorten(model[name])}), so merged tokens have no "
                    "spelling; enrich another model."
                )
        self._byte_level = uses_byte_level(self._data)
        self._spellings = {token for token in self.table.tokens if token is not None}
        self.first_id = self.table.size  #: id of the first new token
        self._new: dict[int, tuple[int, ...]] = {}

    @cached_property
    def library(self) -> tokenizers.Tokenizer:
        """The tokenizer as it was read."""
        return load_tokenizer(self.path)

    @property
    def merges(self) -> Merges:
        """All merged tokens, the new ones included."""
        return Merges({**self.known.parts, **self._new})

    def for_selection(self) -> dict[str, Any]:
        """The arguments of `select_ngrams` that the tokenizer decides."""
        return {
            "first_id": self.first_id,
            "token_bytes": self._usable_bytes(),
            "known": self.known.parts,
            "accepts": self.add,
        }

    def _usable_bytes(self) -> list[bytes | None]:
        """Bytes of the ids that merged tokens may contain: text, and runs of white space; else None."""
        found: list[bytes | None] = []
        for value, kind in zip(self.table.bytes, self.table.kinds.tolist(), strict=True):
            white = kind == Kind.ADDED and value is not None and not value.strip()
            found.append(value if white or kind in (Kind.ORDINARY, Kind.BYTE) else None)
        return found

    def add(self, parts: tuple[int, ...]) -> bool:
        """Add a token for some parts, none of them merged. False if the tokenizer cannot hold it."""
        token = self._spelling(parts)
        if token is None or token in self._spellings or is_unused(token):
            return False
        if self._data["model"].get("ignore_merges") and self._is_word(parts):
            return False
        id = self.first_id + len(self._new)
        self._spellings.add(token)
        self._new[id] = parts
        self._data["model"]["vocab"][token] = id
        return True

    def text(self, parts: Iterable[int]) -> str:
        """Text of some ids for display; bytes that are not UTF-8 are escaped."""
        return b"".join(self.table.bytes[id] or b"" for id in parts).decode("utf-8", "backslashreplace")

    def write(self, out: Path, samples: Sequence[str] = ()) -> None:
        """Write `tokenizer.json` and `merges.json` into a directory.

        Args:
            samples: texts that must be encoded as before.

        Raises:
            TokenizerError: the tokenizer does not decode merged tokens or encode texts as it should.
        """
        self._list_added_tokens()
        text = json.dumps(self._data, ensure_ascii=False, separators=(",", ":"))
        (out / self.path.name).write_text(text, encoding="utf-8")
        self.merges.save(out / "merges.json")
        self._check(load_tokenizer(out / self.path.name), samples)

    def _list_added_tokens(self) -> None:
        """Put the added tokens into the vocabulary too: the library renumbers those that are not in it when
        the vocabulary grows.
        """
        vocab = self._data["model"]["vocab"]
        for token in self._data.get("added_tokens") or []:
            vocab.setdefault(token["content"], token["id"])
        ordered = sorted(vocab.items(), key=lambda item: item[1])
        self._data["model"]["vocab"] = dict(ordered)

    def _spelling(self, parts: tuple[int, ...]) -> str | None:
        """How the file spells a merged token; None if it cannot."""
        value = b"".join(self.table.bytes[id] or b"" for id in parts)
        if self._byte_level:
            return byte_level_text(value)
        try:
            token = value.decode("utf-8").replace(" ", SPACE_MARK)
        except UnicodeDecodeError:
            return None
        return token if sentencepiece_bytes(token) == value else None

    def _is_word(self, parts: tuple[int, ...]) -> bool:
        """Whether the text may stand alone after pre-tokenization. With `ignore_merges` it would be looked up
        whole.
        """
        text, splitter = self.text(parts), self.library.pre_tokenizer
        return splitter is None or len(splitter.pre_tokenize_str(text)) < 2

    def _check(self, written: tokenizers.Tokenizer, samples: Sequence[str]) -> None:
        with library_errors(f"{self.path} cannot be read once it has merged tokens"):
            for id, parts in self._new.items():
                for before in ([], [parts[-1]]):
                    expected = self.library.decode([*before, *parts])
                    # A half character before these parts makes the library replace all their bytes.
                    if "\ufffd" not in expected and written.decode([*before, id]) != expected:
                        raise TokenizerError(
                            f"{self.path}: its decoder ({self._decoder}) does not decode a merged token like "
                            "its parts, so the model cannot be enriched."
                        )
            for text in samples:
                if written.encode(text).ids != self.library.encode(text).ids:
                    raise TokenizerError(
                        f"{self.path} encodes {shorten(text, 60)} differently once it has merged tokens, so "
                        "the model cannot be enriched."
                    )

    @property
    def _decoder(self) -> Any:
        return (self._data.get("decoder") or {}).get("type")
