"""Log-probabilities of an answer's tokens, in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vt_core.model import Score
from vt_core.vocab.tokenizer import Tokenizer

#: Most alternatives at each position.
MAX_TOP = 20


def chat_logprobs(tokenizer: Tokenizer, score: Score, top: int) -> dict[str, Any]:
    """The shape of chat completions and of responses: an object for each token."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        content = tokenizer.bytes_of(token)
        return {"token": token_text(content), "bytes": list(content), "logprob": log_prob}

    return {
        "content": [
            {
                **entry(token, log_prob),
                "top_logprobs": [entry(*pair) for pair in pairs[:top]],
            }
            for token, log_prob, pairs in zip(score.token_ids, score.log_probs, score.top, strict=True)
        ],
        "refusal": None,
    }


def text_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], score: Score | None, first: int, top: int
) -> dict[str, Any]:
    """The shape of completions: a list for each property.

    Args:
        tokenizer: the model's.
        ids: full ids to describe.
        score: of the ids from ``first`` on; those before have no log-probability.
        first: see ``score``.
        top: alternatives at each position.
    """
    tokens = [token_text(tokenizer.bytes_of(token)) for token in ids]
    stream, offsets, length = tokenizer.stream(), [], 0
    for token in ids:
        offsets.append(length)
        length += len(stream.push(token))
    log_probs = () if score is None else score.log_probs
    tops: list[dict[str, float] | None] = [None] * first
    if score is not None:
        for token, log_prob, pairs in zip(score.token_ids, score.log_probs, score.top, strict=True):
            # Of several tokens with one text, the likeliest counts; the chosen token is always there.
            named = {token_text(tokenizer.bytes_of(other)): value for other, value in reversed(pairs[:top])}
            tops.append({**named, token_text(tokenizer.bytes_of(token)): log_prob})
    return {
        "tokens": tokens,
        "token_logprobs": [*[None] * first, *log_probs],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def token_text(content: bytes) -> str:
    """A token as text; the bytes of one that is part of a character are spelled as in ``bytes:\\xe2``."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
