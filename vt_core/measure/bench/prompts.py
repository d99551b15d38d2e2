"""The prompts of a benchmark, as full ids: rows of a file, or random ones for a model without a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vt_core.errors import DataError
from vt_core.profile.row_format import RowFormat
from vt_core.profile.rows import each_row
from vt_core.vocab.tokenizer import Tokenizer

#: Lengths of random prompts: a sentence to translate in a chat template has some 40 to 120 tokens.
RANDOM_LENGTHS = (32, 128)


@dataclass(frozen=True)
class Prompts:
    """What every variant is given, in full ids. ``warm_up`` is run first and not measured."""

    ids: tuple[tuple[int, ...], ...]
    warm_up: tuple[int, ...]
    source: str  #: names of the files, or what else they are
    too_long: int = 0  #: rows passed over because they do not fit the context


def read_prompts(
    files: Sequence[Path],
    layout: RowFormat,
    tokenizer: Tokenizer,
    *,
    limit: int,
    most_tokens: int | None,
    raw: bool = False,
) -> Prompts:
    """The first ``limit`` rows that have at most ``most_tokens`` tokens; the next one is for warming up.

    Through the chat template, where the model has one, unless ``raw``.

    Raises:
        DataError: a file or a row that cannot be used, or no row that fits.
    """
    plain = raw or tokenizer.chat_template is None
    found: list[tuple[int, ...]] = []
    too_long = 0
    for text in each_row(files, layout.prompt_text):
        encoded = tokenizer.encode(text) if plain else tokenizer.encode_chat(_message(text))
        if most_tokens is not None and len(encoded) > most_tokens:
            too_long += 1
        elif len(encoded):
            found.append(tuple(encoded.tolist()))
        if len(found) > limit:
            break
    names = ", ".join(path.name for path in files)
    if not found:
        raise DataError(f"{names}: no row holds a prompt that fits the model's context.")
    return Prompts(tuple(found[:limit]), found[-1], names, too_long)


def random_prompts(ids: Sequence[int], *, limit: int, seed: int) -> Prompts:
    """Prompts of ids drawn from ``ids``, of the lengths that prompts have."""
    random = np.random.RandomState(seed)
    low, high = RANDOM_LENGTHS
    drawn = [
        tuple(random.choice(np.asarray(ids), size=random.randint(low, high + 1)).tolist())
        for _ in range(limit + 1)
    ]
    return Prompts(tuple(drawn[:limit]), drawn[-1], f"random ids, {low} to {high} of them, seed {seed}")


def _message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
