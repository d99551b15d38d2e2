"""Splits corpus files among machines that share nothing: each counts the rows that start in its bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from vt_core.errors import DataError, OptionError, VocabularyError
from vt_core.files.json_files import Fields


@dataclass(frozen=True, order=True)
class Shard:
    """One of the equal parts of a corpus."""

    corpus: str  #: SHA-256 of the names and sizes of the corpus' files, hexadecimal
    count: int  #: number of all parts
    number: int  #: from 1 to `count`

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def of(cls, files: Sequence[str | Path], number: int, count: int) -> Shard:
        """The `number`-th of `count` parts of `files`, which must exist."""
        sizes = [(Path(file).name, Path(file).stat().st_size) for file in files]
        return cls(hashlib.sha256(json.dumps(sizes).encode()).hexdigest(), count, number)


def join_shards(ours: Sequence[Shard], theirs: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards of both counts, sorted. Raises VocabularyError if one of them was counted twice."""
    if twice := set(ours) & set(theirs):
        raise VocabularyError(f"Shard {min(twice)} of the same files is in two counts files; merge it once.")
    return tuple(sorted((*ours, *theirs)))


def missing_shards(shards: Iterable[Shard]) -> Iterator[Shard]:
    """Shards of the same corpora that are not among `shards`, in order."""
    found = set(shards)
    for corpus, count in sorted({(shard.corpus, shard.count) for shard in found}):
        every = (Shard(corpus, count, number + 1) for number in range(count))
        yield from (shard for shard in every if shard not in found)


def read_shards(fields: Fields) -> tuple[Shard, ...]:
    """The field ``shards`` of a counts file, which whole corpora lack. Raises VocabularyError."""
    fault = fields.fault("shards", "is not a list of [digest, parts, number]")
    entries = fields.values.get("shards", [])
    if not isinstance(entries, list):
        raise fault
    shards = []
    for entry in entries:
        match entry:
            case [str(corpus), int(count), int(number)] if 1 <= number <= count:
                shards.append(Shard(corpus, count, number))
            case _:
                raise fault
    return tuple(shards)


def parse_shard(text: str) -> tuple[int, int]:
    """Number of a shard, from 1, and of all shards, from ``I/N``. Raises OptionError."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard, shards = map(int, match.groups()) if match else (0, 0)
    if not 1 <= shard <= shards:
        raise OptionError(f"--shard {text} is not I/N with I from 1 to N, as in 2/8.")
    return shard, shards


def shard_spans(files: Sequence[str | Path], shard: int, shards: int) -> list[range]:
    """For each file, the bytes that belong to a shard, as if the files were one. Shards have equal sizes.

    `read_chunks` reads the rows that start in these bytes, so each row belongs to one shard.

    Args:
        files: the files, in the same order for each shard.
        shard: number of the shard, from 1 to `shards`.

    Raises:
        DataError: a file does not exist, or has no size because it is a pipe.
    """
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file}: --shard needs a regular file.")
    sizes = [Path(file).stat().st_size for file in files]
    starts = list(accumulate(sizes, initial=0))
    first, end = starts[-1] * (shard - 1) // shards, starts[-1] * shard // shards
    return [
        range(max(first - start, 0), max(min(end - start, size), 0))
        for start, size in zip(starts, sizes, strict=False)
    ]
