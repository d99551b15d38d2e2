"""``/v1/completions``: prompts as text or token ids, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vt_core.errors import shorten
from vt_core.model import Generation, Model, Score
from vt_core.serve import common, envelope, fields
from vt_core.serve.common import Common
from vt_core.serve.engine import Engine, Job
from vt_core.serve.envelope import Envelope, sse
from vt_core.serve.errors import ApiError, refused
from vt_core.serve.logprobs import MAX_TOP, text_logprobs
from vt_core.serve.settings import Settings

#: Most tokens of an answer whose request gives no limit, as OpenAI documents it.
DEFAULT_TOKENS = 16
#: Most prompts of a request.
MAX_PROMPTS = 256


def prompts(name: str, value: Any) -> list[str | list[int]]:
    """A prompt or several, each text or token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    return fields.array(_prompt, 1, MAX_PROMPTS)(name, value)


def _prompt(name: str, value: Any) -> str | list[int]:
    if isinstance(value, str):
        if not value:
            raise refused(name, "is empty; give some text")
        return fields.text(name, value)
    if isinstance(value, list):
        if not value or not all(type(token) is int and 0 <= token < 2**31 for token in value):
            raise refused(name, f"is {shorten(value)}, but token ids are whole numbers, at least one")
        return value
    raise refused(name, f"is {shorten(value)}, but it must be text or a list of token ids")


FIELDS = fields.Table(
    used={
        **common.COMMON,
        **common.CHOICES,
        "prompt": prompts,
        "max_tokens": fields.whole(0),
        "echo": fields.flag,
        "logprobs": fields.whole(0, MAX_TOP),
    },
    harmless=common.HARMLESS,
    neutral={"best_of": (1,), "suffix": ("",)},
    required=("prompt",),
)


@dataclass(frozen=True)
class Completion:
    """A checked request for a completion."""

    common: Common
    prompts: Sequence[str | list[int]]
    echo: bool  #: whether the text begins with the prompt
    top: int | None  #: alternatives in the log-probabilities; None: no log-probabilities

    @classmethod
    def parse(cls, body: Any, settings: Settings) -> Completion:
        """Check a body.

        Raises:
            ApiError: a field cannot be served.
            OptionError: the sampler refuses a value.
        """
        given = FIELDS.read("", body)
        shared = Common.of(given, settings, "max_tokens", default=DEFAULT_TOKENS)
        echo = given.get("echo", False)
        if shared.limit == 0 and not echo:
            raise refused("max_tokens", "is 0, which needs echo to be true")
        return cls(shared, given["prompt"], echo, given.get("logprobs"))

    async def prepare(self, engine: Engine, task: str | None) -> tuple[list[str], list[Job]]:
        """For each choice, the text before the answer and the job."""
        ids = await asyncio.to_thread(self._encode, engine.model)
        limit = min(self.common.room(engine.model, len(each)) for each in ids)
        echoed = await asyncio.to_thread(self._echo, engine.model, ids)
        jobs = self.common.jobs(ids, max(limit, 1), task)
        return [text for text in echoed for _ in range(self.common.n)], jobs

    async def reply(self, engine: Engine, name: str, task: str | None) -> dict[str, Any]:
        """The whole response."""
        choices, usage, results = await self._whole(engine, task)
        finished = [result for result in results if result is not None]
        return Envelope("text_completion", "cmpl", name, engine).whole(choices, usage, finished)

    async def events(self, engine: Engine, name: str, task: str | None) -> AsyncGenerator[str, None]:
        """The response as server-sent events."""
        outer = Envelope("text_completion", "cmpl", name, engine, self.common.shows_usage)
        if self.top is not None or not self.common.limit:
            # The log-probabilities are exact only once all tokens are known.
            choices, usage, results = await self._whole(engine, task)
            for choice, result in zip(choices, results, strict=True):
                index = choice["index"]
                yield outer.event(index, {"text": choice["text"]}, logprobs=choice["logprobs"])
                yield outer.last(index, {"text": ""}, choice["finish_reason"], result)
        else:
            echoed, jobs = await self.prepare(engine, task)
            engine.turnstile.check(len(jobs))
            for index, text in enumerate(echoed):
                if text:
                    yield outer.event(index, {"text": text})
            results = [None] * len(jobs)
            async with aclosing(engine.generate(jobs)) as chunks:
                async for index, chunk in chunks:
                    if chunk.text:
                        yield outer.event(index, {"text": chunk.text})
                    if chunk.result is not None:
                        results[index] = chunk.result
                        yield outer.last(index, {"text": ""}, chunk.result.finish_reason, chunk.result)
            usage = self._usage(jobs, results)
        for event in outer.end(usage):
            yield event

    def error_event(self, error: ApiError) -> str:
        """How a stream tells of an error."""
        return sse(error.body())

    async def _whole(
        self, engine: Engine, task: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any], list[Generation | None]]:
        """The choices, the usage, and the results; None each where nothing is to be generated."""
        echoed, jobs = await self.prepare(engine, task)
        results: list[Generation | None] = [None] * len(jobs)
        engine.turnstile.check(1)
        if self.common.limit:
            async with aclosing(engine.generate(jobs)) as chunks:
                async for index, chunk in chunks:
                    results[index] = chunk.result
        logprobs = await self._logprobs(engine, jobs, results, task)
        choices = [
            {
                "index": index,
                "text": echoed[index] + ("" if result is None else result.text),
                "logprobs": logprobs[index],
                "finish_reason": "length" if result is None else result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        return choices, self._usage(jobs, results), results

    def _usage(self, jobs: Sequence[Job], results: Sequence[Generation | None]) -> dict[str, Any]:
        finished = [result for result in results if result is not None]
        if finished:
            return envelope.usage(finished, self.common.n)
        tokens = sum(len(job.ids) for job in jobs[:: self.common.n])
        return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}

    def _encode(self, model: Model) -> list[list[int]]:
        return [
            [int(token) for token in model.encode(prompt, raw=isinstance(prompt, str))]
            for prompt in self.prompts
        ]

    def _echo(self, model: Model, ids: Sequence[Sequence[int]]) -> list[str]:
        if not self.echo:
            return [""] * len(self.prompts)
        return [
            prompt if isinstance(prompt, str) else model.tokenizer.decode(each)
            for prompt, each in zip(self.prompts, ids, strict=True)
        ]

    async def _logprobs(
        self, engine: Engine, jobs: Sequence[Job], results: Sequence[Generation | None], task: str | None
    ) -> list[dict[str, Any] | None]:
        """Log-probabilities of the choices; None each where nobody asked."""
        if self.top is None:
            return [None] * len(jobs)
        answers = [[] if result is None else list(result.token_ids) for result in results]
        shown = [job.ids + answer if self.echo else answer for job, answer in zip(jobs, answers, strict=True)]
        pairs = [
            (job.ids[:1], job.ids[1:] + answer) if self.echo else (job.ids, answer)
            for job, answer in zip(jobs, answers, strict=True)
        ]
        scored = iter(await engine.score([pair for pair in pairs if pair[1]], task, self.top))
        scores: list[Score | None] = [next(scored) if pair[1] else None for pair in pairs]
        tokenizer, top = engine.model.tokenizer, self.top

        def describe() -> list[dict[str, Any] | None]:
            return [
                text_logprobs(tokenizer, ids, score, int(self.echo), top)
                for ids, score in zip(shown, scores, strict=True)
            ]

        return await asyncio.to_thread(describe)
