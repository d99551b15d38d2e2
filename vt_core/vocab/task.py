"""Task vocabularies: the static ids of a task, their provenance, and their file (`*.vt.json`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import VocabularyError, shorten
from vt_core.files.json_files import Fields, is_whole, object_text, read_json, write_atomically
from vt_core.types import Ids
from vt_core.vocab.added_tokens import MAX_TOKENS
from vt_core.vocab.token_bytes import TokenTable

#: Version of the file's format.
FORMAT = "vt-task/1"
#: Largest file to read, in bytes; all ids of the largest tokenizers take 5 million.
MAX_BYTES = 1 << 26

Stages = Mapping[str, int]
HeldOut = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class TaskVocabulary:
    """The static vocabulary of a task."""

    #: Name of the task.
    name: str
    #: Digest of the tokenizer that the ids belong to.
    tokenizer_digest: str
    #: Rows of the table of the model that the task was profiled for.
    vocab_size: int
    #: Full ids below `vocab_size`, sorted int64 ``[n]`` without duplicates.
    ids: Ids
    #: Profiled examples that needed each id, int64 ``[n]``; 0 for an id that only the rank prior added.
    counts: Ids
    #: Profiled examples.
    examples: int = 0
    #: Ordinary ids that the rank prior took; 0 without one.
    prior: int = 0
    #: Languages of the language filter; empty without one.
    languages: tuple[str, ...] = ()
    #: Share of the examples that may lose a token; None if the number of rows was given instead.
    tolerance: float | None = None
    #: Number of ids after each stage of profiling, in order.
    stages: Stages = field(default_factory=dict)
    #: One `{"file": name, "rows": count}` for each profiled file.
    source: tuple[Mapping[str, Any], ...] = ()
    #: Coverage of a held-out file, if it was measured.
    held_out: HeldOut | None = None
    #: Name of the model that the task was profiled for, for messages.
    model: str = ""

    @classmethod
    def load(cls, path: str | Path, tokenizer_json: str | Path | None = None) -> TaskVocabulary:
        """Read a task vocabulary, in this package's format or in one of the published code's.

        Args:
            tokenizer_json: the model's tokenizer. Only the published formats, `{token string: id}` and
                `[id, ...]`, need it: they do not name a tokenizer, so each string is compared with it.

        Raises:
            VocabularyError: the file cannot be read, or does not belong to the tokenizer.
            TokenizerError: `tokenizer_json` cannot be read.
        """
        task = read_task(path)
        if isinstance(task, TaskVocabulary):
            return task
        if tokenizer_json is None:
            raise VocabularyError(
                f"{path}: a list of ids without a tokenizer's digest; give the model that it belongs to."
            )
        return task.of_tokenizer(tokenizer_json)

    def save(self, path: str | Path) -> None:
        """Write the file atomically. Raises OutputError."""
        write_atomically(path, self.content())

    def content(self) -> bytes:
        """The bytes of the file."""
        values = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "tokenizer_digest": self.tokenizer_digest,
            "vocab_size": self.vocab_size,
            "examples": self.examples,
            "prior": self.prior,
            "languages": list(self.languages),
            "tolerance": self.tolerance,
            "stages": dict(self.stages),
            "source": [dict(entry) for entry in self.source],
            "held_out": None if self.held_out is None else dict(self.held_out),
            "ids": self.ids.tolist(),
            "counts": self.counts.tolist(),
        }
        return object_text(values)

    def save_published(self, path: str | Path, table: TokenTable) -> None:
        """Write the published code's format, `{token string: id}`, most frequent first.

        Raises:
            VocabularyError: `table` is another tokenizer's.
            OutputError: the file cannot be written.
        """
        self.check(table.digest(), self.vocab_size)
        ids = self.ids[np.lexsort((self.ids, -self.counts))].tolist()
        tokens = {token: id for id in ids if id < table.size and (token := table.tokens[id]) is not None}
        write_atomically(path, json.dumps(tokens, ensure_ascii=False))

    def check(self, tokenizer_digest: str, vocab_size: int, model: str = "") -> None:
        """Check that the ids belong to a model.

        Args:
            vocab_size: rows of the model's table.
            model: its name, for messages.

        Raises:
            VocabularyError: the model has another tokenizer, or an id has no row.
        """
        if tokenizer_digest != self.tokenizer_digest:
            made_for = _tokenizer(self.model, self.tokenizer_digest)
            raise VocabularyError(
                f"Task vocabulary '{self.name}' was made for {made_for}, but the model has "
                f"{_tokenizer(model, tokenizer_digest)}; profile the task for this model."
            )
        if len(self.ids) and self.ids[-1] >= vocab_size:
            raise VocabularyError(
                f"Task vocabulary '{self.name}' holds id {self.ids[-1]}, but the model's table has only "
                f"{vocab_size} rows; profile the task for this model."
            )

    @staticmethod
    def union(tasks: Iterable[TaskVocabulary]) -> TaskVocabulary:
        """All ids of several tasks; their counts and examples are added.

        Raises:
            VocabularyError: their tokenizers differ.
        """
        first, *rest = tasks
        for other in rest:
            first = _unite(first, other)
        return first


@dataclass(frozen=True)
class PublishedTask:
    """A file of the published code, whose ids only a tokenizer can check."""

    path: str | Path
    #: `{token string: id}` or `[id, ...]`.
    data: Mapping[str, int] | list[int]

    @property
    def name(self) -> str:
        """The name of the task: the file's, without its suffixes."""
        return Path(self.path).name.removesuffix(".json").removesuffix(".vt")

    def of_tokenizer(self, tokenizer_json: str | Path) -> TaskVocabulary:
        """The task vocabulary for the model with a tokenizer.

        Raises:
            VocabularyError: the file belongs to another tokenizer.
            TokenizerError: `tokenizer_json` cannot be read.
        """
        table = TokenTable.load(tokenizer_json)
        ids = _published_ids(self.data, table, self.path)
        return TaskVocabulary(self.name, table.digest(), table.size, ids, np.zeros(len(ids), np.int64))


def read_task(path: str | Path) -> TaskVocabulary | PublishedTask:
    """Read a task vocabulary without a model, to refuse a damaged file before a model is downloaded.

    Raises:
        VocabularyError: the file cannot be read, or is damaged.
    """
    if not isinstance(path, str | os.PathLike):
        raise VocabularyError(f"a task is a file or a TaskVocabulary, not {shorten(path)}")
    data = read_json(path, "task vocabulary", VocabularyError, limit=MAX_BYTES)
    if isinstance(data, dict) and "format" in data and not isinstance(data["format"], int):
        return _parse(Fields(str(path), data, VocabularyError, "profile the task again"))
    if not isinstance(data, dict | list):
        raise VocabularyError(f"{path}: not a task vocabulary; it holds neither an object nor a list.")
    for value in data.values() if isinstance(data, dict) else data:
        if not is_whole(value, MAX_TOKENS):
            raise VocabularyError(f"{path}: {shorten(value)} is not a token id.")
    return PublishedTask(path, data)


def _tokenizer(model: str, digest: str) -> str:
    return f"tokenizer {digest[:12]}" + (f" of {model}" if model else "")


def _unite(a: TaskVocabulary, b: TaskVocabulary) -> TaskVocabulary:
    if a.tokenizer_digest != b.tokenizer_digest:
        raise VocabularyError(
            f"Task vocabularies '{a.name}' ({_tokenizer(a.model, a.tokenizer_digest)}) and '{b.name}' "
            f"({_tokenizer(b.model, b.tokenizer_digest)}) do not go together; profile both for one model."
        )
    ids = np.union1d(a.ids, b.ids)
    counts = np.zeros(len(ids), np.int64)
    for task in (a, b):
        counts[np.searchsorted(ids, task.ids)] += task.counts
    return replace(
        a,
        name=f"{a.name}+{b.name}",
        vocab_size=max(a.vocab_size, b.vocab_size),
        ids=ids,
        counts=counts,
        examples=a.examples + b.examples,
        prior=max(a.prior, b.prior),
        languages=tuple(dict.fromkeys((*a.languages, *b.languages))),
        tolerance=None if a.tolerance is None or b.tolerance is None else max(a.tolerance, b.tolerance),
        stages={},
        source=(*a.source, *b.source),
        held_out=None,
    )


def _parse(fields: Fields) -> TaskVocabulary:
    if fields.values["format"] != FORMAT:
        raise VocabularyError(
            f"{fields.where}: format {shorten(fields.values['format'])} is unknown; this version reads "
            f"{FORMAT!r}."
        )
    vocab_size = fields.whole("vocab_size", MAX_TOKENS)
    examples = fields.whole("examples")
    ids = fields.whole_list("ids", vocab_size - 1)
    counts = fields.whole_list("counts", examples)
    if len(counts) != len(ids):
        raise fields.fault("counts", f"has {len(counts)} entries for {len(ids)} ids")
    if np.any(np.diff(ids) <= 0):
        raise fields.fault("ids", "is not sorted, or holds an id twice")
    return TaskVocabulary(
        name=fields.text("name"),
        tokenizer_digest=fields.text("tokenizer_digest"),
        vocab_size=vocab_size,
        ids=ids,
        counts=counts,
        examples=examples,
        prior=fields.whole("prior"),
        languages=fields.texts("languages"),
        tolerance=_tolerance(fields),
        stages=_stages(fields),
        source=fields.files("source"),
        held_out=_held_out(fields),
        model=fields.text("model") if "model" in fields.values else "",
    )


def _tolerance(fields: Fields) -> float | None:
    value = fields.values.get("tolerance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise fields.fault("tolerance", f"is {shorten(value)}, not at least 0 and below 1")
    return float(value)


def _stages(fields: Fields) -> Stages:
    stages = fields.typed("stages", dict, "a table of sizes")
    if not all(is_whole(value, MAX_TOKENS) for value in stages.values()):
        raise fields.fault("stages", "is not a table of sizes")
    return stages


def _held_out(fields: Fields) -> HeldOut | None:
    value = fields.values.get("held_out")
    if value is not None and not isinstance(value, dict):
        raise fields.fault("held_out", "is not a table of figures")
    return value


def _published_ids(data: Mapping[str, int] | list[int], table: TokenTable, path: str | Path) -> Ids:
    """The sorted ids of a file of the published code."""
    values = data if isinstance(data, list) else data.values()
    for value in values:
        if value >= table.size or table.tokens[value] is None:
            raise VocabularyError(
                f"{path}: {shorten(value)} is not an id of the model's tokenizer ({table.size} ids)."
            )
    if not isinstance(data, list):
        for token, id in data.items():
            if token not in (table.tokens[id], table.text(id)):
                raise VocabularyError(
                    f"{path}: id {id} is {shorten(token)}, but {shorten(table.tokens[id])} in the model's "
                    "tokenizer; the vocabulary was made for another one."
                )
    return np.unique(np.array(list(values), np.int64))
