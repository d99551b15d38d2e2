"""Learned ids: rescues that later requests of this session begin with, and of later sessions if saved."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from vt_core.errors import OutputError, VocabularyError
from vt_core.files.json_files import is_whole, read_object, write_atomically

#: Most learned ids: an eighth of the rank prior.
LIMIT = 1024
#: Version of the file's format.
FORMAT = 1
#: Largest file to read, in bytes; `LIMIT` ids take about 10,000.
MAX_BYTES = 1 << 20


class Learned:
    """Ids that verification had to put in, least recently used first."""

    def __init__(self, ids: Iterable[int] = (), limit: int = LIMIT) -> None:
        """Start with some ids.

        Args:
            limit: most ids to keep. The least recently used ones go first.
        """
        self._limit = limit
        self._ids: dict[int, None] = {}
        self.update(ids, ())

    @property
    def ids(self) -> list[int]:
        """Full ids, least recently used first."""
        return list(self._ids)

    def update(self, rescued: Iterable[int], used: Iterable[int]) -> bool:
        """Take over what a request needed.

        Args:
            rescued: ids that its verification put in.
            used: ids of its prompt and its text.

        Returns:
            Whether the set of learned ids has changed.
        """
        before = set(self._ids)
        for token in [*(token for token in used if token in self._ids), *rescued]:
            self._ids.pop(token, None)
            self._ids[token] = None
        while len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]
        return set(self._ids) != before


class LearnedFile:
    """Learned ids on disk. Several processes may add to one file at once."""

    def __init__(self, path: Path, tokenizer_digest: str, rows: int) -> None:
        """Name a file, which need not exist.

        Args:
            tokenizer_digest: digest of the model's tokenizer; the file must have the same.
            rows: V of the model. Ids in the file must be below it.
        """
        self.path = path  #: the file
        self._digest, self._rows = tokenizer_digest, rows

    def load(self) -> list[int]:
        """The ids, least recently used first; none if there is no file.

        Raises:
            VocabularyError: the file is damaged or belongs to another tokenizer.
        """
        if not self.path.exists():
            return []
        data = read_object(self.path, "file of learned ids", VocabularyError, limit=MAX_BYTES)
        ids = data.get("ids") if data.get("format") == FORMAT else None
        if not isinstance(ids, list) or not all(is_whole(token, self._rows - 1) for token in ids):
            raise VocabularyError(
                f"{self.path} does not hold learned ids of a model with {self._rows} rows; delete it"
            )
        if data.get("tokenizer_digest") != self._digest:
            raise VocabularyError(
                f"{self.path} was learned with tokenizer {str(data.get('tokenizer_digest'))[:19]}, "
                f"but the model has {self._digest[:19]}; use another task file or delete it"
            )
        return ids

    def add(self, learned: Learned) -> None:
        """Write the ids of this process after those that others have written meanwhile.

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
    """The file of learned ids: beside the first task file, else in the cache, named by the tokenizer."""
    for task in tasks:
        return task.with_name(task.name.removesuffix(".json").removesuffix(".vt") + ".learned.json")
    return cache / "learned" / f"{tokenizer_digest.rpartition(':')[2][:32]}.json"
