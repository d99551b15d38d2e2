"""The variants of a model that ``bench`` and ``eval`` compare."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vt_core.decode.drafting import MAX_DRAFT
from vt_core.errors import OptionError
from vt_core.vocab.heads import HEADS

STOCK, FULL = "stock", "full"
#: The variants of ``bench`` that draft tokens, each with the one that differs in nothing else.
UNDRAFTED = {"draft": "prealloc", "full+draft": FULL}
#: What ``bench`` compares by default: the heads as published (approximate), the same with verification, and
#: the tables in memory instead of on disk.
BENCH_DEFAULT = (
    "stock,full,rebuild-approximate,split-approximate,prealloc-approximate,prealloc-approximate-ram,"
    "rebuild,split,prealloc,prealloc-ram"
)
_REDUCED = tuple(head for head in ("rebuild", "split", "prealloc") if head in HEADS)
_DRAFTED = re.compile(r"(draft|full\+draft)(?:@(\d+))?")
_NAME = re.compile(r"([a-z]+)(-approximate)?(-ram)?(?:@(\d+))?")


@dataclass(frozen=True)
class Variant:
    """One way to run a model."""

    name: str
    #: Head of vt; None is the stock framework.
    head: str | None
    #: Whether the full head checks every token.
    exact: bool = True
    #: Where the rows are read from, ``lmdb`` or ``ram``.
    store: str = "lmdb"
    #: Number of static rows; None keeps the size of the task vocabulary.
    rows: int | None = None
    #: Static rows: of the ``task``, of the pruned tokenizer (``corpus``), or ``none``.
    static: str = "task"
    #: Whether the rows of the prompt's tokens join the head.
    dynamic: bool = True
    #: Whether tokens are drafted: ``auto`` (where the task has an n-gram table), ``ngram`` or ``none``.
    draft: str = "auto"
    #: Tokens to draft for each read; None learns how many pay.
    draft_tokens: int | None = None
    #: Name in reports.
    title: str = ""


#: The variants of ``eval``. The first is the reference; the last two are the paper's ablation.
EVAL_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("original", FULL, title="original"),
        Variant("pruned", "prealloc", exact=False, static="corpus", title="static pruning"),
        Variant("approximate", "prealloc", exact=False, title="approximate"),
        Variant("exact", "prealloc", title="exact"),
        Variant("static-only", "prealloc", exact=False, dynamic=False, title="approximate, static only"),
        Variant("dynamic-only", "prealloc", exact=False, static="none", title="approximate, dynamic only"),
    )
}
REFERENCE = "original"
_EVAL_DEFAULT = ("original", "pruned", "approximate", "exact")


def parse_variants(text: str, sizes: str = "") -> list[Variant]:
    """Parse the variants of ``bench``.

    Args:
        text: names separated by commas, such as ``stock,full,prealloc@4096``; ``all`` stands for all heads.
        sizes: numbers of static rows; each adds ``prealloc`` of that size, approximate and exact.

    Raises:
        OptionError: a name is unknown or given twice, or there is none.
    """
    names = [name for part in _split(text) for name in (all_names() if part == "all" else [part])]
    for size in _split(sizes):
        names += [f"prealloc-approximate@{size}", f"prealloc@{size}"]
    variants = [parse_variant(name) for name in names]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise OptionError(f"variant {min(duplicates)!r} is given twice")
    if not variants:
        raise OptionError(f"no variants to compare; give some of {BENCH_DEFAULT}")
    return variants


def all_names() -> list[str]:
    """Names of all heads, approximate and exact, with rows on disk and in memory."""
    modes = ("-approximate", "-approximate-ram", "", "-ram")
    return [STOCK, FULL, *(head + mode for mode in modes for head in _REDUCED)]


def parse_variant(name: str) -> Variant:
    """Parse one name of ``bench``; raises OptionError where it is unknown."""
    if name == STOCK:
        return Variant(name, None)
    if drafted := _DRAFTED.fullmatch(name):
        base, tokens = drafted.groups()
        if tokens is not None and not 1 <= int(tokens) <= MAX_DRAFT:
            raise OptionError(
                f"the variant {name!r} drafts {tokens} tokens, but only 1 to {MAX_DRAFT} can be"
            )
        length = None if tokens is None else int(tokens)
        return Variant(name, UNDRAFTED[base], draft="ngram", draft_tokens=length)
    match = _NAME.fullmatch(name)
    head, approximate, ram, rows = match.groups() if match else ("", None, None, None)
    known = head in _REDUCED or (head == FULL and not approximate and not rows)
    if not known or (rows is not None and int(rows) == 0):
        raise OptionError(
            f"unknown variant {name!r}: use stock, full, {', '.join(UNDRAFTED)}, which may be followed by "
            f"@TOKENS, or one of {', '.join(_REDUCED)}, which may be followed by -approximate, -ram and "
            "@ROWS, in this order"
        )
    store = "ram" if ram else "lmdb"
    return Variant(name, head, not approximate, store, int(rows) if rows else None, draft="none")


def undrafted(name: str) -> str | None:
    """The variant that differs from a drafting one only in that it drafts nothing; None for all others."""
    drafted = _DRAFTED.fullmatch(name)
    return UNDRAFTED[drafted[1]] if drafted else None


def parse_eval_variants(text: str | None, can_prune: bool) -> tuple[Variant, ...]:
    """Parse the variants of ``eval``, in the order of :data:`EVAL_VARIANTS`.

    Args:
        text: names separated by commas; None takes those of the papers' tables.
        can_prune: whether there is a corpus for static pruning. Without one the default leaves it out.

    Raises:
        OptionError: a name is unknown, or static pruning lacks its corpus.
    """
    if text is None:
        names = [name for name in _EVAL_DEFAULT if can_prune or EVAL_VARIANTS[name].static != "corpus"]
    else:
        names = list(_split(text))
    for name in names:
        if name not in EVAL_VARIANTS:
            raise OptionError(f"unknown variant {name!r}: use some of {', '.join(EVAL_VARIANTS)}")
        if EVAL_VARIANTS[name].static == "corpus" and not can_prune:
            raise OptionError(f"the variant {name!r} needs the corpus to prune to; give --profile-data FILE")
    if not names:
        raise OptionError(f"no variants to compare; give some of {', '.join(EVAL_VARIANTS)}")
    return tuple(variant for name, variant in EVAL_VARIANTS.items() if name in names)


def _split(text: str) -> Iterable[str]:
    return filter(None, (part.strip() for part in text.split(",")))
