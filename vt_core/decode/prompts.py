"""Prompts as applications give them, turned into full ids and checked against the model's limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from vt_core.errors import PromptError, shorten
from vt_core.types import Ids
from vt_core.vocab.tokenizer import Message, Prompt, Tokenizer


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    system: str | None,
    raw: bool,
    template_arguments: Mapping[str, Any],
) -> Ids:
    """Full ids of a prompt, int64 ``[n]``. :meth:`vt_core.model.Model.stream` describes the arguments.

    Raises:
        PromptError: the prompt is empty or of the wrong type, or its system message cannot be used.
    """
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, system, raw, template_arguments)
    if system is not None:
        raise PromptError("a system message goes with a text prompt; put it into the chat messages")
    items = _items(prompt, "a prompt is text, a list of chat messages, or a list of token ids")
    if items and all(isinstance(item, Mapping) for item in items):
        return tokenizer.encode_chat(cast("list[Message]", items), **template_arguments)
    _refuse_template_arguments(template_arguments)
    return token_ids(items, "prompt")


def token_ids(items: Iterable[object], what: str) -> Ids:
    """Full ids as an array, int64 ``[n]``.

    Raises:
        PromptError: an item is not a whole number, or is too large for an id.
    """
    found = _items(items, f"a {what} is a list of token ids")
    for item in found:
        if not isinstance(item, (int, np.integer)) or isinstance(item, bool):
            raise PromptError(
                f"the {what} holds {shorten(item)}, which is not a token id; give a list of whole numbers"
            )
        if not -(2**63) <= item < 2**63:
            raise PromptError(f"the {what} holds {shorten(item)}, which is too large for a token id")
    return np.array(found, dtype=np.int64)


def token_id_pair(pair: object) -> tuple[Ids, Ids]:
    """Full ids of a prompt and its continuation.

    Raises:
        PromptError: the value is not a pair of lists of token ids.
    """
    wanted = "what is scored is a pair of prompt and continuation, both lists of token ids"
    parts = _items(pair, wanted)
    if len(parts) != 2:
        raise PromptError(f"{wanted}; {shorten(pair)} has {len(parts)} parts")
    prompt, continuation = (_items(part, wanted) for part in parts)
    return token_ids(prompt, "prompt"), token_ids(continuation, "continuation")


def check_ids(ids: Ids, rows: int) -> None:
    """Check that every id has a row.

    Raises:
        PromptError: an id is outside ``0 … rows - 1``.
    """
    outside = ids[(ids < 0) | (ids >= rows)]
    if len(outside):
        raise PromptError(
            f"the text has token id {outside[0]}, but the model's tokens are 0 to {rows - 1}; "
            "use ids of this model's tokenizer"
        )


def check_prompt(ids: Ids, max_tokens: int, rows: int, context: int | None) -> None:
    """Check that a prompt can be run.

    Raises:
        PromptError: the prompt is empty, has an id without a row, or does not fit the context.
    """
    if len(ids) == 0:
        raise PromptError("the prompt is empty; give at least one token")
    check_ids(ids, rows)
    if context is not None and len(ids) + max_tokens > context:
        raise PromptError(
            f"the prompt has {len(ids)} tokens; with {max_tokens} to generate that exceeds the context of "
            f"{context}; shorten the prompt or lower --max-tokens"
        )


def check_scored(prompt: Ids, continuation: Ids, rows: int, context: int | None) -> None:
    """Check that a continuation can be scored after a prompt.

    Raises:
        PromptError: either is empty or has an id without a row, or they do not fit the context.
    """
    for name, ids in (("prompt", prompt), ("continuation", continuation)):
        if len(ids) == 0:
            raise PromptError(f"the {name} to score is empty; give at least one token")
        check_ids(ids, rows)
    # The model does not read the last token.
    if context is not None and len(prompt) + len(continuation) - 1 > context:
        raise PromptError(
            f"the prompt has {len(prompt)} tokens and the continuation {len(continuation)}; that exceeds the "
            f"context of {context}; shorten them"
        )


def _encode_text(
    tokenizer: Tokenizer, prompt: str, system: str | None, raw: bool, template_arguments: Mapping[str, Any]
) -> Ids:
    if not prompt:
        raise PromptError("the prompt is empty; give some text")
    if raw or not tokenizer.templates.by_name:
        if system is not None:
            raise PromptError(
                "a system message needs the chat template; leave it out, or put it into the raw prompt"
            )
        _refuse_template_arguments(template_arguments)
        return tokenizer.encode(prompt)
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    return tokenizer.encode_chat(messages, **template_arguments)


def _refuse_template_arguments(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise PromptError(
            f"{', '.join(sorted(arguments))}: tools and template arguments need the chat template; leave "
            "them out for a model without one, a raw prompt, or token ids"
        )


def _items(value: object, wanted: str) -> Sequence[object]:
    # Bytes and mappings are iterable too, but what they yield is not what the caller meant.
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise PromptError(f"{wanted}; {shorten(value)} is none of these")
    try:
        return list(value)
    except TypeError as error:  # an array without dimensions
        raise PromptError(f"{wanted}; {shorten(value)} is none of these") from error
