"""Checkpoints: an interrupted count resumes from its last one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vt_core.errors import DataError, VocabularyError
from vt_core.files.json_files import Fields, read_object, write_json
from vt_core.profile.counts import Counts

#: Seconds between two checkpoints.
INTERVAL = 30.0


@dataclass(frozen=True)
class Position:
    """A position in a list of files: after `rows` rows of the file with index `file`."""

    file: int = 0
    rows: int = 0


class Checkpoint:
    """A counts file with a position. It is valid only for the run whose signature it holds."""

    def __init__(self, path: str | Path, signature: str, interval: float | None = None) -> None:
        """`signature` comes from `run_signature`; `interval` is in seconds, `INTERVAL` by default."""
        self.path = Path(path)
        self._signature = signature
        self._interval = INTERVAL if interval is None else interval
        self._saved = time.monotonic()

    def load(self) -> tuple[Counts, Position] | None:
        """Counts and position of the interrupted run, or None if there is no valid checkpoint of this run."""
        try:
            values = read_object(self.path, "checkpoint", VocabularyError)
            fields = Fields(str(self.path), values, VocabularyError, "delete it")
            resume = fields.part("resume")
            if resume.text("signature") != self._signature:
                return None
            return Counts.from_fields(fields), Position(resume.whole("file"), resume.whole("rows"))
        except VocabularyError:
            return None

    @property
    def due(self) -> bool:
        """Whether the interval since the last save has passed."""
        return time.monotonic() - self._saved >= self._interval

    def save(self, counts: Counts, position: Position) -> None:
        """Save counts and position atomically. Raises OutputError."""
        resume = {"signature": self._signature, **asdict(position)}
        write_json(self.path, {**counts.fields(), "resume": resume})
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove the file after a complete run."""
        self.path.unlink(missing_ok=True)


def run_signature(files: Sequence[str | Path], *settings: object) -> str:
    """A digest of the files (name, size, time) and of every setting that changes what a run counts.

    Args:
        files: the corpus files.
        settings: dataclasses, texts, numbers, and dictionaries and tuples of these.

    Raises:
        DataError: a file does not exist.
    """
    try:
        stats = [(str(file), Path(file).stat()) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    described = [
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        [repr(setting) for setting in settings],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
