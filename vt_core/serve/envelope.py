"""The JSON objects and server-sent events in which answers reach a client."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vt_core.model import Generation
from vt_core.serve.engine import Engine


def sse(value: Mapping[str, Any], event: str | None = None) -> str:
    """A server-sent event of a JSON object, and its name where the API gives events names."""
    content = f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
    return content if event is None else f"event: {event}\n{content}"


class Envelope:
    """What is around the choices of chat completions and completions, whole or in a stream."""

    def __init__(self, kind: str, prefix: str, name: str, engine: Engine, shows_usage: bool = False) -> None:
        """
        Args:
            kind: OpenAI's ``object``.
            prefix: of the id.
            name: of the model, as the request wrote it.
            engine: that answers.
            shows_usage: whether a stream ends with the usage; its other events then say that it is null.
        """
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": engine.fingerprint,
        }
        self._shows_usage = shows_usage

    def whole(
        self, choices: Sequence[Any], usage: Mapping[str, Any], results: Sequence[Generation]
    ) -> dict[str, Any]:
        """The whole response; ``results``: of the answers, if any were generated."""
        facts = {"vt": own_facts(results)} if results else {}
        return {**self._head, "choices": list(choices), "usage": usage, **facts}

    def event(self, index: int, content: Mapping[str, Any], **more: Any) -> str:
        """A piece of a choice; ``more``: its ``logprobs`` or its ``finish_reason``."""
        return self._event([{"index": index, **content, "logprobs": None, "finish_reason": None, **more}])

    def last(self, index: int, content: Mapping[str, Any], reason: str, result: Generation | None) -> str:
        """The end of a choice; ``result``: of its answer, if one was generated."""
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return self._event([choice], **({} if result is None else {"vt": own_facts([result])}))

    def end(self, usage: Mapping[str, Any]) -> Iterator[str]:
        """The end of a stream."""
        if self._shows_usage:
            yield self._event([], usage=usage)
        yield "data: [DONE]\n\n"

    def _event(self, choices: Sequence[Any], **more: Any) -> str:
        usage = {"usage": None} if self._shows_usage else {}
        return sse({**self._head, "choices": choices, **usage, **more})


def usage(results: Sequence[Generation], n: int = 1, reasoning: int | None = None) -> dict[str, Any]:
    """OpenAI's ``usage`` of some answers, ``n`` for each prompt."""
    prompts = [result.stats for result in results[::n]]
    prompt = sum(stats.prompt_tokens for stats in prompts)
    completion = sum(result.stats.generated_tokens for result in results)
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(stats.cached_tokens for stats in prompts)},
        **details,
    }


def own_facts(results: Sequence[Generation]) -> dict[str, Any]:
    """What answers say under ``vt``: how exact and how fast they are."""
    stats = [result.stats for result in results]
    speeds = [each.tokens_per_s for each in stats if each.tokens_per_s is not None]
    return {
        "exact": all(result.exact for result in results),
        "seed": stats[0].seed,
        "rescued": sum(each.rescued for each in stats),
        "verifications": sum(each.verifications for each in stats),
        "drafted": sum(each.drafted for each in stats),
        "accepted": sum(each.accepted for each in stats),
        "ttft_s": stats[0].ttft_s,
        "tokens_per_s": sum(speeds) / len(speeds) if speeds else None,
    }
