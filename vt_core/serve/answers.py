"""Answers as they are generated: their parts, their results, and their log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from vt_core.model import Chunk, Generation
from vt_core.serve.calls import Call
from vt_core.serve.engine import Engine, Job
from vt_core.serve.markup import Part, PartReader, Reasoning, Text


@dataclass
class Answer:
    """One answer, growing chunk by chunk."""

    reader: PartReader
    text: str = ""  #: of the answer so far
    reasoning: str = ""  #: before the answer
    calls: list[Call] = field(default_factory=list)  #: of tools
    reasoning_tokens: int = 0  #: tokens of the reasoning
    result: Generation | None = None  #: at the end
    one_call: bool = False  #: whether calls after the first are dropped

    def add(self, chunk: Chunk) -> list[Part]:
        """The parts that a chunk completes."""
        self.reasoning_tokens += self.reader.reasoning and chunk.token_id is not None
        parts = self.reader.push(chunk.text)
        if chunk.result is not None:
            self.result = chunk.result
            parts += self.reader.finish()
        kept: list[Part] = []
        for part in parts:
            if isinstance(part, Text):
                self.text += part.text
            elif isinstance(part, Reasoning):
                self.reasoning += part.text
            elif self.one_call and self.calls:
                continue
            else:
                self.calls.append(part)
            kept.append(part)
        return kept

    @property
    def finished(self) -> Generation:
        """The result of an answer that has ended."""
        assert self.result is not None, "a stream ends with its result"
        return self.result

    @property
    def finish_reason(self) -> str:
        """OpenAI's ``finish_reason``."""
        reason = self.finished.finish_reason
        return "tool_calls" if self.calls and reason == "stop" else reason


async def run_answers(
    engine: Engine, jobs: Sequence[Job], answers: Sequence[Answer]
) -> AsyncGenerator[tuple[int, list[Part]], None]:
    """Run jobs into answers; yields an answer's index and its new parts, also an empty list at its end."""
    async with aclosing(engine.generate(jobs)) as chunks:
        async for index, chunk in chunks:
            parts = answers[index].add(chunk)
            if parts or chunk.result is not None:
                yield index, parts
