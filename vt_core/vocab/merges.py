"""Merged tokens of an enriched model: which tokens each stands for, and how texts are rewritten with them.

A merged token is in the tokenizer's vocabulary, but no merge rule leads to it, so encoding never produces it.
Outputs are rewritten here, on ids. `merges.json` beside the `tokenizer.json` lists the merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vt_core.errors import TokenizerError, shorten
from vt_core.files.json_files import is_whole, read_object, write_json
from vt_core.vocab.added_tokens import MAX_TOKENS

MERGES_NAME = "merges.json"


@dataclass(frozen=True)
class Merges:
    """The merged tokens of a tokenizer."""

    #: The tokens that each merged id stands for: at least two ids, none of them merged.
    parts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def beside(cls, tokenizer_json: Path) -> Merges:
        """The merged tokens of a `tokenizer.json`; none if there is no `merges.json` in its directory.

        Raises:
            TokenizerError: the file is damaged.
        """
        path = tokenizer_json.parent / MERGES_NAME
        if tokenizer_json.name != "tokenizer.json" or not path.is_file():
            return cls()
        values = read_object(path, "list of merged tokens", TokenizerError)
        return cls(dict(_entry(key, value, path) for key, value in values.items()))._checked(path)

    def _checked(self, path: Path) -> Merges:
        for id, parts in self.parts.items():
            if not self.parts.keys().isdisjoint(parts):
                raise TokenizerError(f"{path}: token {id} has parts that are merged themselves.")
        if len(set(self.parts.values())) < len(self.parts):
            raise TokenizerError(f"{path}: two merged tokens stand for the same tokens.")
        return self

    def save(self, path: str | Path) -> None:
        """Write a `merges.json`: an object of id and parts. Raises OutputError."""
        write_json(path, {str(id): list(parts) for id, parts in sorted(self.parts.items())})

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[int]:
        return iter(self.parts)

    def apply(self, ids: Sequence[int]) -> list[int]:
        """`ids` with merged tokens: from left to right, at each place the longest that fits."""
        if not self.parts:
            return list(ids)
        merged, at = [], 0
        by_first = self._by_first
        while at < len(ids):
            for parts, id in by_first.get(ids[at], ()):
                if tuple(ids[at : at + len(parts)]) == parts:
                    merged.append(id)
                    at += len(parts)
                    break
            else:
                merged.append(ids[at])
                at += 1
        return merged

    def expand(self, ids: Sequence[int]) -> list[int]:
        """`ids` with each merged token replaced by its parts."""
        return [part for id in ids for part in self.parts.get(id, (id,))]

    @cached_property
    def _by_first(self) -> dict[int, list[tuple[tuple[int, ...], int]]]:
        """Parts and id of the merged tokens by their first part, the longest first."""
        found: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for id, parts in self.parts.items():
            found.setdefault(parts[0], []).append((parts, id))
        return {first: sorted(group, key=lambda pair: -len(pair[0])) for first, group in found.items()}


def _entry(key: str, value: Any, path: Path) -> tuple[int, tuple[int, ...]]:
    good = key.isdecimal() and int(key) < MAX_TOKENS and isinstance(value, list) and len(value) > 1
    if not good or not all(is_whole(part, MAX_TOKENS) for part in value):
        raise TokenizerError(f"{path}: {shorten(key)}: {shorten(value)} is not a token id and its parts.")
    return int(key), tuple(value)
