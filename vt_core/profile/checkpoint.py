"""Where an interrupted count goes on."""

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

INTERVAL = 30.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class Position:
    """How far a count has come: `rows` of the file number `file`, and all rows of the files before."""

    file: int = 0
    rows: int = 0


class Checkpoint:
    """A counts file that also holds a position. It is good only for the same files, layout and tokenizer."""

    def __init__(self, path: str | Path, signature: str, interval: float = INTERVAL) -> None:
        """`interval` in seconds."""
        self.path = Path(path)
        self._signature = signature
        self._interval = interval
        self._saved = time.monotonic()

    def load(self) -> tuple[Counts, Position] | None:
        """Counts and position of the interrupted run; None where there was none, or one of something else."""
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
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._interval

    def save(self, counts: Counts, position: Position) -> None:
        """Save the counts and how far they have come. Raises OutputError."""
        write_json(
            self.path, {**counts.fields(), "resume": {"signature": self._signature, **asdict(position)}}
        )
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Removes the file: the run has ended well."""
        self.path.unlink(missing_ok=True)


def run_signature(files: Sequence[str | Path], *what: object) -> str:
    """Changes with the files and with anything else that changes what a run counts.

    `what` may hold dataclasses, texts and numbers. Raises DataError for a file that is not there.
    """
    try:
        stats = [(str(file), Path(file).stat()) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    described = [
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        [repr(part) for part in what],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
