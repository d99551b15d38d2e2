"""Splits corpus files among machines that share nothing: each counts the rows that start in its bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from vt_core.errors import DataError, OptionError


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
