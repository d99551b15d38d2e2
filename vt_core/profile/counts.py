"""Document frequencies of a corpus, and the files that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import VocabularyError
from vt_core.files.json_files import Fields, read_object, write_json
from vt_core.profile.ngram_counts import NgramCounts
from vt_core.profile.shards import Shard, join_shards, read_shards
from vt_core.types import Ids
from vt_core.vocab.added_tokens import MAX_TOKENS

FORMAT = "vt-counts/1"


@dataclass(frozen=True, eq=False)
class Counts:
    """Document frequencies of a corpus under one tokenizer.

    T_in and T_out are the sets of ids of an example's input and output. Merging is associative and
    commutative: parts that were counted by other processes or machines give the same result.
    """

    tokenizer_digest: str
    #: Examples with the id in T_out - T_in (the input-aware filter), int64 `[size]`.
    needed: Ids
    #: Examples with the id in T_out, int64 `[size]`.
    written: Ids
    #: Rows with an output.
    examples: int = 0
    #: Output tokens of all examples.
    tokens: int = 0
    #: Output tokens that also occur in the input of their example.
    copied: int = 0
    #: Rows that were skipped because they could not be used.
    bad_rows: int = 0
    #: One `{"file": name, "rows": count}` per name of a file, sorted.
    source: tuple[Mapping[str, Any], ...] = ()
    #: Counts of the outputs' n-grams.
    ngrams: NgramCounts = field(default_factory=NgramCounts)
    #: The shards that were counted, sorted; none where whole files were counted.
    shards: tuple[Shard, ...] = ()

    @classmethod
    def empty(cls, tokenizer_digest: str, size: int, contexts: int = 0) -> Counts:
        """Counts without any example, for a tokenizer with ids below `size`.

        Merged with others, they change nothing, as long as these count n-grams with contexts of at most
        `contexts` tokens.
        """
        zeros = np.zeros(size, np.int64)
        return cls(tokenizer_digest, zeros, zeros.copy(), ngrams=NgramCounts.empty(contexts))

    @property
    def size(self) -> int:
        return len(self.needed)

    def merge(self, other: Counts) -> Counts:
        """Counts of both corpora together.

        Raises:
            VocabularyError: their tokenizers differ, or both have the same shard.
        """
        if self.tokenizer_digest != other.tokenizer_digest:
            raise VocabularyError(
                f"Counts of tokenizer {self.tokenizer_digest[:12]} ({self._files()}) and of tokenizer "
                f"{other.tokenizer_digest[:12]} ({other._files()}) cannot be merged; count with one model."
            )
        return Counts(
            self.tokenizer_digest,
            _add(self.needed, other.needed),
            _add(self.written, other.written),
            self.examples + other.examples,
            self.tokens + other.tokens,
            self.copied + other.copied,
            self.bad_rows + other.bad_rows,
            file_rows((*self.source, *other.source)),
            self.ngrams.merge(other.ngrams),
            join_shards(self.shards, other.shards),
        )

    def times(self, weight: int) -> Counts:
        """Counts of the same corpus with each example repeated `weight` times."""
        return replace(
            self,
            needed=self.needed * weight,
            written=self.written * weight,
            examples=self.examples * weight,
            tokens=self.tokens * weight,
            copied=self.copied * weight,
            ngrams=self.ngrams.times(weight),
        )

    def save(self, path: str | Path) -> None:
        """Write a counts file atomically. Raises OutputError."""
        write_json(path, self.fields())

    def fields(self) -> dict[str, Any]:
        """The fields of a counts file."""
        ids = np.flatnonzero(self.written)
        shards = {"shards": [[s.corpus, s.count, s.number] for s in self.shards]} if self.shards else {}
        return {
            "format": FORMAT,
            "tokenizer_digest": self.tokenizer_digest,
            "size": self.size,
            "examples": self.examples,
            "tokens": self.tokens,
            "copied": self.copied,
            "bad_rows": self.bad_rows,
            "source": [dict(entry) for entry in self.source],
            **shards,
            "ids": ids.tolist(),
            "needed": self.needed[ids].tolist(),
            "written": self.written[ids].tolist(),
            "ngrams": self.ngrams.values(),
        }

    @classmethod
    def load(cls, path: str | Path) -> Counts:
        """Read a counts file. Raises VocabularyError."""
        data = read_object(path, "counts file", VocabularyError)
        return cls.from_fields(Fields(str(path), data, VocabularyError, "profile the task again"))

    @classmethod
    def from_fields(cls, fields: Fields) -> Counts:
        """Counts from the fields of a counts file. Raises VocabularyError."""
        if (found := fields.values.get("format")) != FORMAT:
            raise VocabularyError(
                f"{fields.where}: format {found!r} is unknown; this version reads {FORMAT!r}."
            )
        size = fields.whole("size", MAX_TOKENS)
        examples = fields.whole("examples")
        ids = fields.whole_list("ids", size - 1)
        if np.any(np.diff(ids) <= 0):
            raise fields.fault("ids", "is not sorted or contains an id twice")
        columns = {}
        for key in ("needed", "written"):
            values = fields.whole_list(key, examples)
            if len(values) != len(ids):
                raise fields.fault(key, f"has {len(values)} entries for {len(ids)} ids")
            columns[key] = np.zeros(size, np.int64)
            columns[key][ids] = values
        return cls(
            tokenizer_digest=fields.text("tokenizer_digest"),
            examples=examples,
            tokens=fields.whole("tokens"),
            copied=fields.whole("copied"),
            bad_rows=fields.whole("bad_rows"),
            source=fields.files("source"),
            # Counts of versions without n-gram tables have no such field.
            ngrams=NgramCounts.from_fields(fields, "ngrams") if "ngrams" in fields.values else NgramCounts(),
            shards=read_shards(fields),
            **columns,
        )

    def _files(self) -> str:
        return ", ".join(entry["file"] for entry in self.source) or "no file"


def merge_all(parts: Iterable[Counts]) -> Counts:
    """Counts of one or more corpora together. Raises VocabularyError as `Counts.merge` does."""
    first, *rest = parts
    for part in rest:
        first = first.merge(part)
    return first


def file_rows(entries: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Entries of `source`, one per name, sorted: parts of one file add up."""
    rows: Counter[str] = Counter()
    for entry in entries:
        rows[entry["file"]] += entry["rows"]
    return tuple({"file": name, "rows": count} for name, count in sorted(rows.items()))


def _add(a: Ids, b: Ids) -> Ids:
    # GGUF and Hugging Face files of one tokenizer pad their vocabularies to different sizes.
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total
