"""What is compared: the stock framework, the full head, and reduced heads, held and used in several ways."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vt_core.errors import OptionError
from vt_core.vocab.heads import HEADS

#: The paper's comparison, the same with verification, and the tables on disk beside the tables in memory.
DEFAULT = (
    "stock,full,rebuild-approximate,split-approximate,prealloc-approximate,prealloc-approximate-ram,"
    "rebuild,split,prealloc,prealloc-ram"
)
STOCK, FULL = "stock", "full"
_NAME = re.compile(r"([a-z]+)(-approximate)?(-ram)?(?:@(\d+))?")


@dataclass(frozen=True)
class Variant:
    """One way to run a model. ``head`` None is the stock framework, ``rows`` None the task's vocabulary."""

    name: str
    head: str | None
    exact: bool = True  #: whether every token is the full head's choice
    store: str = "lmdb"
    rows: int | None = None  #: static rows, in place of the task's


def parse_variants(text: str, sizes: str = "") -> list[Variant]:
    """Variants of a list such as ``stock,full,prealloc-approximate,prealloc@4096``, ``all`` for all.

    ``sizes`` adds ``prealloc`` with each of these numbers of static rows, approximate and exact.

    Raises:
        OptionError: a name is unknown or stands there twice.
    """
    names = [name for part in _split(text) for name in (every() if part == "all" else [part])]
    for size in _split(sizes):
        names += [f"prealloc-approximate@{size}", f"prealloc@{size}"]
    variants = [parse_variant(name) for name in names]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise OptionError(f"variant {min(twice)!r} is given twice")
    if not variants:
        raise OptionError(f"no variants to compare; give some of {DEFAULT}")
    return variants


def every() -> list[str]:
    """All heads, approximate and exact, with rows on disk and in memory."""
    reduced = [head for head in ("rebuild", "split", "prealloc") if head in HEADS]
    modes = ("-approximate", "-approximate-ram", "", "-ram")
    return [STOCK, FULL, *(head + mode for mode in modes for head in reduced)]


def parse_variant(name: str) -> Variant:
    """Raises OptionError for a name that means nothing."""
    match = _NAME.fullmatch(name)
    head, approximate, ram, rows = match.groups() if match else (None, None, None, None)
    if name == STOCK:
        return Variant(name, None)
    reduced = head in HEADS and head != FULL
    if head not in HEADS or (not reduced and (approximate or rows)) or rows == "0":
        raise OptionError(
            f"unknown variant {name!r}: it is stock, full, or one of rebuild, split, prealloc, with "
            "-approximate, -ram and @ROWS behind it in this order"
        )
    return Variant(name, head, not approximate, "ram" if ram else "lmdb", int(rows) if rows else None)


def _split(text: str) -> Iterable[str]:
    return filter(None, (part.strip() for part in text.split(",")))
