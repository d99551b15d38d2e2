"""A turn of a conversation: what chat completions and responses have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.serve import conversation, fields
from vt_core.serve.answers import Answer
from vt_core.serve.common import Common
from vt_core.serve.conversation import Conversation
from vt_core.serve.engine import Engine, Job
from vt_core.serve.errors import refused
from vt_core.serve.logprobs import MAX_TOP, chat_logprobs

#: Fields of both endpoints.
FIELDS: dict[str, fields.Check] = {
    "tool_choice": conversation.tool_choice,
    "parallel_tool_calls": fields.flag,
    "top_logprobs": fields.whole(0, MAX_TOP),
    "chat_template_kwargs": conversation.template_arguments,
}


@dataclass(frozen=True)
class Turn:
    """A conversation to answer, checked."""

    common: Common
    conversation: Conversation
    top: int | None  #: alternatives in the log-probabilities; None: no log-probabilities
    one_call: bool  #: whether an answer may call one tool only

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        common: Common,
        messages: Sequence[dict[str, Any]],
        *,
        format_options: Mapping[str, Any],
        effort: str | None,
        logprobs: bool,
        logprobs_field: str,
    ) -> Turn:
        """
        Args:
            given: the request's fields, checked.
            common: those of all endpoints.
            messages: of the conversation.
            format_options: what holds the answer to a format; empty: its text is free.
            effort: how much to reason.
            logprobs: whether log-probabilities are wanted.
            logprobs_field: what a request must say to get them.

        Raises:
            ApiError: the fields do not go together.
        """
        if given.get("top_logprobs") and not logprobs:
            raise refused("top_logprobs", f"needs {logprobs_field}")
        common.options.update(format_options)
        free = not format_options
        tools = conversation.choose(given.get("tools", []), given.get("tool_choice"), free=free)
        return cls(
            common,
            Conversation(messages, tools, given.get("chat_template_kwargs"), effort, free),
            given.get("top_logprobs", 0) if logprobs else None,
            not given.get("parallel_tool_calls", True),
        )

    async def prepare(self, engine: Engine, task: str | None) -> tuple[list[Job], list[Answer]]:
        """The jobs of this turn and their empty answers."""
        model, shared = engine.model, self.common
        prompt = await asyncio.to_thread(self.conversation.prompt, model, engine.markup)
        limit = shared.room(model, len(prompt.ids))
        answers = [Answer(prompt.reader(), one_call=self.one_call) for _ in range(shared.n)]
        jobs = shared.jobs([prompt.ids], limit, task, engine.markup.special, **prompt.options)
        return jobs, answers

    async def logprobs(
        self, engine: Engine, jobs: Sequence[Job], answers: Sequence[Answer], task: str | None
    ) -> list[dict[str, Any] | None]:
        """Log-probabilities of answers whose tokens are all known; None each where nobody asked."""
        if self.top is None:
            return [None] * len(answers)
        pairs = [
            (job.ids, list(answer.finished.token_ids)) for job, answer in zip(jobs, answers, strict=True)
        ]
        tokenizer, top = engine.model.tokenizer, self.top
        scores = await engine.score(pairs, task, top)
        # Beside the loop: there may be thousands of tokens.
        return await asyncio.to_thread(lambda: [chat_logprobs(tokenizer, score, top) for score in scores])
