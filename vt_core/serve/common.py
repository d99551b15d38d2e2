"""What all endpoints that generate have in common: their fields, and the jobs that they become."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.decode.options import BATCH, DRAFT, request_options
from vt_core.model import Generation, Model
from vt_core.serve import fields
from vt_core.serve.engine import Job
from vt_core.serve.errors import ApiError, refused
from vt_core.serve.settings import Settings

_SEED_MASK = 2**64 - 1

#: Fields that go to the sampler as they are.
SAMPLING: dict[str, fields.Check] = {
    "temperature": fields.number(0),
    "top_p": fields.number(0, 1),
    "top_k": fields.whole(0),
    "min_p": fields.number(0, 1),
    "presence_penalty": fields.number(),
    "frequency_penalty": fields.number(),
    "repetition_penalty": fields.number(0),
    "logit_bias": fields.logit_bias,
}

#: Fields under ``vt`` that are options of :meth:`vt_core.Model.stream`.
_OWN: dict[str, fields.Check] = {
    "approximate": fields.flag,
    "draft": fields.choice(*DRAFT),
    "batch": fields.choice(*BATCH),
}

_VT = fields.Table({**_OWN, "task": fields.text})

#: Fields of every endpoint.
COMMON: dict[str, fields.Check] = {
    **SAMPLING,
    "model": fields.text,
    "stream": fields.flag,
    "seed": fields.whole(-(2**63), _SEED_MASK),
    "vt": _VT.read,
}

#: Fields of OpenAI's that concern its accounts, its storage or its speed, and no text.
HARMLESS = frozenset({
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
})  # fmt: skip

STREAM_OPTIONS = fields.Table(used={"include_usage": fields.flag}, harmless=("include_obfuscation",)).read


@dataclass(frozen=True)
class Common:
    """The common fields of a request, checked."""

    model: str | None  #: name of the model
    task: str | None  #: name of the task vocabulary, from ``vt``
    stream: bool  #: whether to send server-sent events
    seed: int  #: of the first answer; later ones count up
    options: dict[str, Any]  #: of :meth:`vt_core.Model.stream`

    @classmethod
    def of(cls, given: Mapping[str, Any], settings: Settings) -> Common:
        """Take the common fields out of what a table has read.

        Raises:
            OptionError: the sampler refuses a value.
        """
        own = given.get("vt", {})
        options = {
            **settings.defaults,
            **{name: given[name] for name in SAMPLING if name in given},
            **{name: own[name] for name in _OWN if name in own},
            "stop": given.get("stop", ()),
        }
        request_options(**options)
        # Without a seed, two requests are two draws. The answer tells which seed it had.
        seed = given["seed"] & _SEED_MASK if "seed" in given else secrets.randbits(31)
        return cls(given.get("model"), own.get("task"), given.get("stream", False), seed, options)

    def jobs(
        self, prompts: Sequence[Sequence[int]], n: int, max_tokens: int, task: str | None, **more: Any
    ) -> list[Job]:
        """``n`` jobs for each prompt, prompt by prompt; ``more``: further options."""
        return [
            Job(
                list(ids),
                {**self.options, **more, "max_tokens": max_tokens, "seed": self.seed + at & _SEED_MASK},
                task,
            )
            for ids in prompts
            for at in range(n)
        ]


def check_prompt(model: Model, count: int, limit: int | None, name: str, settings: Settings) -> int:
    """The most tokens to generate after a prompt.

    Args:
        model: the model.
        count: tokens of the prompt.
        limit: what the request asks for; None: the server's default, or what the context has room for.
        name: of the field that holds ``limit``.
        settings: of the server.

    Raises:
        ApiError: the prompt is too long, or leaves too little room.
    """
    context = model.context
    longest = min((each for each in (settings.max_prompt, context) if each is not None), default=None)
    if longest is not None and count > longest - (longest == context):
        raise ApiError(
            f"the prompt has {count} tokens, but this server takes {longest} at most",
            code="context_length_exceeded",
        )
    room = None if context is None else context - count
    if limit is None:
        return settings.max_tokens if room is None else min(room, settings.max_tokens)
    if room is not None and limit > room:
        raise refused(
            name,
            f"is {limit}, but the prompt has {count} tokens, which leaves {room} of the model's {context}",
            "context_length_exceeded",
        )
    return limit


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
