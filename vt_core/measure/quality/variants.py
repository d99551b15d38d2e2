"""What is compared: the original head, static pruning, and reduced heads with and without verification."""

from __future__ import annotations

from dataclasses import dataclass

from vt_core.errors import OptionError


@dataclass(frozen=True)
class Variant:
    """How one column of a comparison generates."""

    title: str
    full: bool = False
    """On the original head."""
    static: str = "task"
    """Static rows: those of the task vocabulary, of the pruned tokenizer ("corpus"), or "none"."""
    dynamic: bool = True
    """Whether the prompt's tokens join the head."""
    exact: bool = False
    """Whether the full head checks every token."""


VARIANTS = {
    "original": Variant("original", full=True),
    "pruned": Variant("static pruning", static="corpus"),
    "approximate": Variant("approximate"),
    "exact": Variant("exact", exact=True),
    "static-only": Variant("approximate, static only", dynamic=False),
    "dynamic-only": Variant("approximate, dynamic only", static="none"),
}
"""The first is what the others are held against. The last two are the paper's ablation."""

REFERENCE = "original"
DEFAULT = ("original", "pruned", "approximate", "exact")


def parse_variants(text: str | None, can_prune: bool) -> tuple[str, ...]:
    """Names of variants, from a list with commas, in the order of `VARIANTS`; raises OptionError.

    Without a text: the four of the papers' tables, static pruning only where there is a corpus for it.
    """
    if text is None:
        return tuple(name for name in DEFAULT if can_prune or VARIANTS[name].static != "corpus")
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise OptionError(f"Variant {name!r} is not known; known are {', '.join(VARIANTS)}.")
        if VARIANTS[name].static == "corpus" and not can_prune:
            raise OptionError(f"The variant {name} is cut to a corpus; give it with --profile-data FILE.")
    return tuple(name for name in VARIANTS if name in names)
