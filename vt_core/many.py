"""Many prompts with one model: a few run together, and the next one starts as soon as one ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from vt_core.decode.results import Chunk, Generation
from vt_core.errors import PromptError, VtError, shorten
from vt_core.vocab.tokenizer import Prompt

Stream = Callable[..., Generator[Chunk, None, None]]


def generate_many(
    stream: Stream,
    slots: int,
    prompts: Iterable[Prompt | Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    ordered: bool,
    return_errors: bool,
) -> Generator[tuple[int, Generation | VtError], None, None]:
    """See :meth:`vt_core.Model.generate_many`.

    Args:
        stream: starts a request, as :meth:`vt_core.Model.stream` does.
        slots: requests that run at once.
    """
    waiting = enumerate(prompts)
    running: deque[tuple[int, Generator[Chunk, None, None]]] = deque()
    done: dict[int, Generation | VtError] = {}
    following = 0  #: the prompt whose result is next, where order matters
    exhausted = False
    try:
        while running or not exhausted:
            if not exhausted and len(running) < slots:
                if (each := next(waiting, None)) is None:
                    exhausted = True
                    continue
                index, prompt = each
                try:
                    running.append((index, _start(stream, prompt, options)))
                except VtError as error:
                    done[index] = _failure(error, index, return_errors)
            else:
                # Each in turn, a token at a time: all of them take part in every round.
                index, chunks = running.popleft()
                try:
                    result = next(chunks).result
                except VtError as error:
                    done[index] = _failure(error, index, return_errors)
                else:
                    if result is None:
                        running.append((index, chunks))
                    else:
                        chunks.close()
                        done[index] = result
            if not ordered:
                for index in list(done):
                    yield index, done.pop(index)
            while following in done:
                yield following, done.pop(following)
                following += 1
    finally:
        for _, chunks in running:
            chunks.close()


def _start(stream: Stream, prompt: object, options: Mapping[str, Any]) -> Generator[Chunk, None, None]:
    if not isinstance(prompt, Mapping):
        return stream(prompt, **options)
    if "prompt" not in prompt:
        raise PromptError(f"{shorten(prompt)} has no 'prompt'; give one, beside options of its own")
    return stream(**{**options, **prompt})


def _failure(error: VtError, index: int, return_errors: bool) -> VtError:
    if return_errors:
        return error
    raise type(error)(f"prompt {index}: {error}") from error
