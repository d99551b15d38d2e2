"""Task vocabularies: the static ids of a task, where they come from, and their file (`*.vt.json`)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import VocabularyError
from vt_core.token_bytes import MAX_TOKENS, TokenTable
from vt_core.vocabulary import Ids

FORMAT = "vt-task/1"

Stages = Mapping[str, int]
HeldOut = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class TaskVocabulary:
    """The static vocabulary of a task.

    `ids` are full ids, sorted int64 [n], none twice, all below `vocab_size`; `counts` [n] is the number of
    profiled examples that needed each id (0 for an id that only the rank prior brought), out of `examples`.
    """

    name: str
    tokenizer_digest: str
    vocab_size: int
    """Rows of the table of the model that the task was profiled for."""
    ids: Ids
    counts: Ids
    examples: int = 0
    prior: int = 0
    """How many ordinary ids the rank prior took; 0 without one."""
    languages: tuple[str, ...] = ()
    """Names of the language filter's languages; empty where nothing was filtered."""
    tolerance: float | None = None
    """Share of the examples that may lose a token; None where a number of rows was asked for instead."""
    stages: Stages = field(default_factory=dict)
    """Ids after each stage of profiling, in order."""
    source: tuple[Mapping[str, Any], ...] = ()
    """One `{"file": name, "rows": count}` for each file that was read."""
    held_out: HeldOut | None = None
    """Coverage of a held-out file, where it was measured."""
    model: str = ""
    """Name of the model that the task was profiled for, for messages."""

    @classmethod
    def load(cls, path: str | Path, tokenizer_json: str | Path | None = None) -> TaskVocabulary:
        """Reads a task vocabulary of ours, or one of the published code's forms.

        The published forms, `{token string: id}` and `[id, ...]`, do not say which tokenizer they belong to:
        the model's `tokenizer_json` is read for them only, and every string must be that tokenizer's.
        Raises VocabularyError, or TokenizerError.
        """
        data = _read_json(path)
        if isinstance(data, dict) and "format" in data and not isinstance(data["format"], int):
            return _parse(data, str(path))
        if not isinstance(data, dict | list):
            raise VocabularyError(f"{path}: not a task vocabulary; it holds neither an object nor a list.")
        if tokenizer_json is None:
            raise VocabularyError(
                f"{path}: a list of ids without its tokenizer's digest; give the model that it belongs to."
            )
        return _parse_published(data, TokenTable.load(tokenizer_json), path)

    def save(self, path: str | Path) -> None:
        """Writes the file whole or not at all; raises VocabularyError."""
        values: dict[str, Any] = {
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
        lines = (f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in values.items())
        write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    def save_published(self, path: str | Path, table: TokenTable) -> None:
        """Writes the published code's `{token string: id}`, most frequent first; raises VocabularyError."""
        self.check(table.digest(), self.vocab_size)
        ids = self.ids[np.lexsort((self.ids, -self.counts))].tolist()
        tokens = {token: id for id in ids if id < table.size and (token := table.tokens[id]) is not None}
        write_atomically(path, json.dumps(tokens, ensure_ascii=False).encode())

    def check(self, tokenizer_digest: str, vocab_size: int, model: str = "") -> None:
        """Raises VocabularyError unless the ids are of this tokenizer and have rows in `vocab_size` rows."""
        if tokenizer_digest != self.tokenizer_digest:
            raise VocabularyError(
                f"Task vocabulary '{self.name}' was made for {_tokenizer(self.model, self.tokenizer_digest)}, "
                f"the model has {_tokenizer(model, tokenizer_digest)}; profile the task for this model."
            )
        if len(self.ids) and self.ids[-1] >= vocab_size:
            raise VocabularyError(
                f"Task vocabulary '{self.name}' holds id {self.ids[-1]}, but the model's table has only "
                f"{vocab_size} rows; profile the task for this model."
            )

    @staticmethod
    def union(tasks: Iterable[TaskVocabulary]) -> TaskVocabulary:
        """All ids of several tasks of one tokenizer, counts and examples added; raises VocabularyError."""
        first, *rest = tasks
        for other in rest:
            first = _unite(first, other)
        return first


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes beside `path` and renames; raises VocabularyError and leaves nothing behind where that fails."""
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be written ({error.strerror}).") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


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


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise VocabularyError(f"{path}: the task vocabulary cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: not a task vocabulary (no valid JSON: {error}).") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _parse(data: Mapping[str, Any], where: str) -> TaskVocabulary:
    if data["format"] != FORMAT:
        raise VocabularyError(f"{where}: format {data['format']!r} is unknown; this version reads {FORMAT}.")
    vocab_size = _whole(data, "vocab_size", where, MAX_TOKENS)
    examples = _whole(data, "examples", where)
    ids = _whole_list(data, "ids", where, vocab_size - 1)
    counts = _whole_list(data, "counts", where, examples)
    if len(counts) != len(ids):
        raise VocabularyError(f"{where}: {len(counts)} counts for {len(ids)} ids; profile the task again.")
    if np.any(np.diff(ids) <= 0):
        raise VocabularyError(f"{where}: ids are not sorted, or one stands twice; profile the task again.")
    return TaskVocabulary(
        name=_typed(data, "name", where, str, "text"),
        tokenizer_digest=_typed(data, "tokenizer_digest", where, str, "text"),
        vocab_size=vocab_size,
        ids=ids,
        counts=counts,
        examples=examples,
        prior=_whole(data, "prior", where),
        languages=_languages(data, where),
        tolerance=_tolerance(data, where),
        stages=_stages(data, where),
        source=_source(data, where),
        held_out=_held_out(data, where),
        model=_typed({"model": "", **data}, "model", where, str, "text"),
    )


def _typed(data: Mapping[str, Any], key: str, where: str, kind: type, noun: str) -> Any:
    if key not in data:
        raise VocabularyError(f"{where}: field '{key}' is missing; profile the task again.")
    if not isinstance(data[key], kind):
        raise VocabularyError(f"{where}: field '{key}' is not {noun}; profile the task again.")
    return data[key]


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _whole(data: Mapping[str, Any], key: str, where: str, most: int = 2**63 - 1) -> int:
    value = _typed(data, key, where, int, "a whole number")
    if not _is_whole(value, most):
        raise VocabularyError(f"{where}: field '{key}' is {value}, not from 0 to {most}.")
    return int(value)


def _whole_list(data: Mapping[str, Any], key: str, where: str, most: int) -> Ids:
    values = _typed(data, key, where, list, "a list of whole numbers")
    for value in values:
        if not _is_whole(value, most):
            raise VocabularyError(f"{where}: field '{key}' holds {value!r}, not a number from 0 to {most}.")
    return np.array(values, np.int64)


def _languages(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    values = _typed(data, "languages", where, list, "a list of names")
    if not all(isinstance(value, str) for value in values):
        raise VocabularyError(f"{where}: field 'languages' is not a list of names.")
    return tuple(values)


def _tolerance(data: Mapping[str, Any], where: str) -> float | None:
    value = data.get("tolerance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise VocabularyError(f"{where}: field 'tolerance' is {value!r}, not from 0 up to 1.")
    return float(value)


def _stages(data: Mapping[str, Any], where: str) -> dict[str, int]:
    stages = _typed(data, "stages", where, dict, "a table of sizes")
    if not all(_is_whole(value, MAX_TOKENS) for value in stages.values()):
        raise VocabularyError(f"{where}: field 'stages' is not a table of sizes.")
    return dict(stages)


def _source(data: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    entries = _typed(data, "source", where, list, "a list of files")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("file"), str)
            or not _is_whole(entry.get("rows"), 2**63 - 1)
        ):
            raise VocabularyError(f"{where}: field 'source' holds {entry!r}, not a file and its rows.")
    return tuple(entries)


def _held_out(data: Mapping[str, Any], where: str) -> HeldOut | None:
    value = data.get("held_out")
    if value is not None and not isinstance(value, dict):
        raise VocabularyError(f"{where}: field 'held_out' is not a table of figures.")
    return value


def _parse_published(data: Any, table: TokenTable, path: str | Path) -> TaskVocabulary:
    values = data.values() if isinstance(data, dict) else data
    for value in values:
        if not _is_whole(value, table.size - 1) or table.tokens[value] is None:
            raise VocabularyError(f"{path}: {value!r} is no id of the model's tokenizer ({table.size} ids).")
    if isinstance(data, dict):
        for token, id in data.items():
            if token not in (table.tokens[id], table.text(id)):
                raise VocabularyError(
                    f"{path}: id {id} is {token!r} there, but {table.tokens[id]!r} in the model's tokenizer; "
                    "the vocabulary was made for another one."
                )
    ids = np.unique(np.array(list(values), np.int64))
    name = Path(path).name.removesuffix(".json").removesuffix(".vt")
    return TaskVocabulary(name, table.digest(), table.size, ids, np.zeros(len(ids), np.int64))
