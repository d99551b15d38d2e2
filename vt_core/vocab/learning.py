"""Rescued ids that later requests begin with, in this session and, where asked for, in later ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from vt_core.errors import OutputError, VocabularyError
from vt_core.files.json_files import is_whole, read_object, write_atomically

LIMIT = 1024  #: learned rows; an eighth of the rank prior's
FORMAT = 1


class Learned:
    """Ids that the full head had to put in, the least recently used first; never more than ``limit``."""

    def __init__(self, ids: Iterable[int] = (), limit: int = LIMIT) -> None:
        self._limit = limit
        self._ids: dict[int, None] = {}
        self.update(ids, ())

    @property
    def ids(self) -> list[int]:
        return list(self._ids)

    def update(self, rescued: Iterable[int], used: Iterable[int]) -> bool:
        """A request has used some ids and had others rescued; True when the set of learned ids has
        changed.
        """
        before = set(self._ids)
        for token in [*(token for token in used if token in self._ids), *rescued]:
            self._ids.pop(token, None)
            self._ids[token] = None
        while len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]
        return set(self._ids) != before


class LearnedFile:
    """Learned ids on disk. Many processes may add to one file: each adds to what is there by then."""

    def __init__(self, path: Path, tokenizer_digest: str, rows: int) -> None:
        """``rows``: V of the model; ids in the file must be below it."""
        self.path = path
        self._digest, self._rows = tokenizer_digest, rows

    def load(self) -> list[int]:
        """The ids, least recently used first; none where there is no file.

        Raises:
            VocabularyError: the file is damaged or belongs to another tokenizer.
        """
        if not self.path.exists():
            return []
        data = read_object(self.path, "file of learned ids", VocabularyError)
        ids = data.get("ids") if data.get("format") == FORMAT else None
        if not isinstance(ids, list) or not all(is_whole(token, self._rows - 1) for token in ids):
            raise VocabularyError(
                f"{self.path} holds no learned ids of a model with {self._rows} rows; delete it"
            )
        if data.get("tokenizer_digest") != self._digest:
            raise VocabularyError(
                f"{self.path} was learned with tokenizer {str(data.get('tokenizer_digest'))[:19]}, "
                f"but the model has {self._digest[:19]}; use another task file or delete it"
            )
        return ids

    def add(self, learned: Learned) -> None:
        """Write the ids of this process behind those that others have written meanwhile.

        Raises:
            VocabularyError: the file is damaged or belongs to another tokenizer.
            OutputError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                merged = Learned(self.load())
                merged.update(learned.ids, ())
                content = {"format": FORMAT, "tokenizer_digest": self._digest, "ids": merged.ids}
                write_atomically(self.path, json.dumps(content) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error}); put the task file where you may write"
            ) from error


def learned_path(tasks: Iterable[Path], cache: Path, tokenizer_digest: str) -> Path:
    """Where learned ids are kept: beside the first task file, else in the cache, by tokenizer."""
    for task in tasks:
        return task.with_name(task.name.removesuffix(".json").removesuffix(".vt") + ".learned.json")
    return cache / "learned" / f"{tokenizer_digest.rpartition(':')[2][:32]}.json"
