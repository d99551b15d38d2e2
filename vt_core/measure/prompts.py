"""The prompts of a benchmark as full ids: rows of a file, or random ids for a model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vt_core.errors import DataError
from vt_core.profile.row_format import RowFormat
from vt_core.profile.rows import each_row
from vt_core.vocab.tokenizer import Tokenizer

#: Lengths of random prompts: a sentence to translate in a chat template has about 40 to 120 tokens.
RANDOM_LENGTHS = (32, 128)
#: Warms a variant up where the files hold no row beyond the measured ones.
WARM_UP_TEXT = "Name the four seasons of the year, and say in a few words what each of them is like."


@dataclass(frozen=True)
class Prompts:
    """The prompts that every variant is given, as full ids."""

    ids: tuple[tuple[int, ...], ...]
    #: A prompt that is run first and not measured; none of ``ids``.
    warm_up: tuple[int, ...]
    #: Names of the files, or a description of random prompts.
    source: str
    #: Number of rows that were skipped because they do not fit the context.
    too_long: int = 0


def encode(tokenizer: Tokenizer, text: str, *, raw: bool = False, system: str | None = None) -> list[int]:
    """Full ids of a prompt: through the chat template, where the model has one, unless ``raw``."""
    if raw or tokenizer.chat_template is None:
        return list(tokenizer.encode(text).tolist())
    messages = [] if system is None else [{"role": "system", "content": system}]
    return list(tokenizer.encode_chat([*messages, {"role": "user", "content": text}]).tolist())


def read_prompts(
    files: Sequence[Path],
    layout: RowFormat,
    tokenizer: Tokenizer,
    *,
    limit: int,
    max_tokens: int | None,
    raw: bool = False,
) -> Prompts:
    """Read the first ``limit`` rows that have at most ``max_tokens`` tokens; the next row is the warm-up.

    Raises:
        DataError: a file or a row cannot be used, or no row fits.
    """
    found: list[tuple[int, ...]] = []
    too_long = 0
    for text in each_row(files, layout.prompt_text, layout.input_columns):
        ids = tuple(encode(tokenizer, text, raw=raw))
        if max_tokens is not None and len(ids) > max_tokens:
            too_long += 1
        elif ids and (len(found) < limit or ids not in found):
            found.append(ids)
        if len(found) > limit:
            break
    names = ", ".join(path.name for path in files)
    if not found:
        raise DataError(f"{names}: no row holds a prompt that fits the model's context.")
    if len(found) > limit:
        warm_up = found.pop()
    else:
        # A measured prompt would teach the head the very rows that the measurement then finds there.
        warm_up = tuple(encode(tokenizer, WARM_UP_TEXT, raw=raw)[:max_tokens])
    return Prompts(tuple(found), warm_up, names, too_long)


def random_prompts(ids: Sequence[int], *, limit: int, seed: int) -> Prompts:
    """Prompts of ids drawn from ``ids``, as long as real prompts are."""
    random = np.random.RandomState(seed)
    low, high = RANDOM_LENGTHS
    drawn = [
        tuple(random.choice(np.asarray(ids), size=random.randint(low, high + 1)).tolist())
        for _ in range(limit + 1)
    ]
    return Prompts(tuple(drawn[:limit]), drawn[-1], f"random ids, {low} to {high} of them, seed {seed}")
