"""What all endpoints that generate have in common: their fields, and the jobs that they become."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.decode.drafting import MAX_DRAFT
from vt_core.decode.options import BATCH, DRAFT, request_options
from vt_core.model import Model
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
    "draft_tokens": fields.whole(1, MAX_DRAFT),
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

#: Fields of the endpoints that answer with choices.
CHOICES: dict[str, fields.Check] = {
    "n": fields.whole(1, 64),
    "stop": fields.stops,
    "stream_options": fields.Table(
        used={"include_usage": fields.flag}, harmless=("include_obfuscation",)
    ).read,
}

#: Fields of OpenAI's that concern its accounts, its storage or its speed, and no text.
HARMLESS = frozenset({
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
})  # fmt: skip


@dataclass(frozen=True)
class Common:
    """The common fields of a request, checked."""

    settings: Settings  #: of the server
    model: str | None  #: name of the model
    task: str | None  #: name of the task vocabulary, from ``vt``
    stream: bool  #: whether to send server-sent events
    shows_usage: bool  #: whether a stream ends with the usage
    n: int  #: answers to each prompt
    limit: int | None  #: most tokens of an answer; None: the server's default
    limit_name: str  #: the field that says so
    seed: int  #: of the first answer; later ones count up
    options: dict[str, Any]  #: of :meth:`vt_core.Model.stream`

    @classmethod
    def of(
        cls, given: Mapping[str, Any], settings: Settings, *limits: str, default: int | None = None
    ) -> Common:
        """Take the common fields out of what a table has read.

        Args:
            given: the fields, checked.
            settings: of the server.
            limits: fields that limit the tokens of an answer.
            default: limit of a request that gives none.

        Raises:
            ApiError: the request gives two different limits.
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
        asked = {name: given[name] for name in limits if name in given}
        if len(set(asked.values())) > 1:
            *others, last = asked
            raise refused(last, f"and {others[0]} differ; give one of them")
        return cls(
            settings,
            given.get("model"),
            own.get("task"),
            given.get("stream", False),
            given.get("stream_options", {}).get("include_usage", False),
            given.get("n", 1),
            next(iter(asked.values()), default),
            next(iter(asked), limits[0]),
            # Without a seed, two requests are two draws. The answer tells which seed it had.
            given["seed"] & _SEED_MASK if "seed" in given else secrets.randbits(31),
            options,
        )

    def room(self, model: Model, count: int) -> int:
        """The most tokens to generate after a prompt of ``count`` tokens.

        Raises:
            ApiError: the prompt is too long, or leaves too little room.
        """
        context, settings = model.context, self.settings
        longest = min((each for each in (settings.max_prompt, context) if each is not None), default=None)
        if longest is not None and count > longest - (longest == context):
            raise ApiError(
                f"the prompt has {count} tokens, but this server takes {longest} at most",
                code="context_length_exceeded",
            )
        room = None if context is None else context - count
        if self.limit is None:
            return settings.max_tokens if room is None else min(room, settings.max_tokens)
        if room is not None and self.limit > room:
            raise refused(
                self.limit_name,
                f"is {self.limit}, but the prompt has {count} tokens, which leaves {room} of the model's "
                f"{context}",
                "context_length_exceeded",
            )
        return self.limit

    def jobs(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        task: str | None,
        shown: Mapping[int, str] | None = None,
        **more: Any,
    ) -> list[Job]:
        """The jobs of some prompts, prompt by prompt; ``more``: further options; the rest as in
        :class:`Job`.
        """
        return [
            Job(
                list(ids),
                {**self.options, **more, "max_tokens": max_tokens, "seed": self.seed + at & _SEED_MASK},
                task,
                shown or {},
            )
            for ids in prompts
            for at in range(self.n)
        ]
