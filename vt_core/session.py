"""A conversation with a model: turns in order, the caches kept between them."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vt_core.decode.options import RequestOptions, request_options
from vt_core.decode.prompts import encode_prompt
from vt_core.decode.results import Chunk, Generation
from vt_core.decode.types import Slot
from vt_core.errors import PromptError
from vt_core.files import session_file
from vt_core.loaded import LoadedModel
from vt_core.vocab.tokenizer import Message


class Session:
    """A conversation. :meth:`vt_core.Model.session` makes one.

    >>> with model.session(system="Answer in one sentence.") as session:
    ...     session.send("Why is the sky blue?").text
    ...     session.send("And at sunset?").text

    A turn reads only what the caches do not hold yet: the common prefix of the new prompt and the text read
    so far is found on token ids, so a template that rewrites the history costs what it rewrites. The text is
    that of a fresh request with the same messages.
    """

    def __init__(self, model: LoadedModel, options: RequestOptions) -> None:
        """Applications call :meth:`vt_core.Model.session`."""
        if model.tokenizer.chat_template is None:
            raise PromptError("this model has no chat template, so it cannot hold a conversation")
        self._model = model
        self._options = options
        self._slot: Slot[Any] = model.decoder.open()
        #: The conversation so far, chat messages. May be edited between turns.
        self.messages: list[Message] = (
            [] if options.system is None else [{"role": "system", "content": options.system}]
        )

    def send(self, content: str | Sequence[Message] = (), *, max_tokens: int | None = None) -> Generation:
        """Add a turn and return the whole answer; see :meth:`stream`."""
        result = None
        for chunk in self.stream(content, max_tokens=max_tokens):
            result = chunk.result
        assert result is not None, "a stream ends with its result"
        return result

    def stream(
        self, content: str | Sequence[Message] = (), *, max_tokens: int | None = None
    ) -> Generator[Chunk, None, None]:
        """Add a turn and generate the answer piece by piece; the last chunk carries the result.

        Turn and answer join :attr:`messages`. If the stream is closed early or interrupted, the answer is
        what was generated so far; if it fails, the conversation stays as it was.

        Args:
            content: text of the user's turn, or chat messages to add, such as the results of tools. Empty:
                answer the conversation as it is, for example after :meth:`edit`.
            max_tokens: most tokens of this answer; None takes the session's.

        Raises:
            PromptError: the conversation does not fit the context, or a message is of the wrong type.
            BackendError: another turn of this session is running, or the model is closed.
        """
        if content == "":
            raise PromptError("the turn is empty; give some text")
        added: list[Message] = (
            [{"role": "user", "content": content}] if isinstance(content, str) else list(content)
        )
        options = self._options
        if max_tokens is not None:
            limit = request_options(max_tokens=max_tokens).max_tokens
            options = replace(options, max_tokens=limit)
        messages = [*self.messages, *added]
        ids = encode_prompt(
            self._model.tokenizer,
            messages,
            system=None,
            raw=False,
            template_arguments=options.template_arguments,
        )
        return self._answer(messages, self._model.run(ids, options, self._slot))

    def _answer(
        self, messages: list[Message], chunks: Generator[Chunk, None, None]
    ) -> Generator[Chunk, None, None]:
        """Pass chunks on, and add the answer to the conversation unless it fails."""
        answer = ""
        try:
            with closing(chunks):
                for chunk in chunks:
                    answer += chunk.text
                    yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            self.messages = [*messages, {"role": "assistant", "content": answer}]
            raise
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def edit(self, index: int, content: str) -> None:
        """Give the message at ``index`` another text, and drop all messages after it.

        Raises:
            PromptError: there is no such message.
        """
        if not -len(self.messages) <= index < len(self.messages):
            raise PromptError(f"there is no message {index}; the conversation has {len(self.messages)}")
        edited = {**self.messages[index], "content": content}
        self.messages = [*self.messages[: index % len(self.messages)], edited]

    def fork(self) -> Session:
        """A second session that goes on from here; neither changes the other."""
        other = copy.copy(self)
        other._slot = self._model.decoder.copy(self._slot)
        other.messages = copy.deepcopy(self.messages)
        return other

    def reset(self) -> None:
        """Forget all turns; a system message stays."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    @property
    def cached_tokens(self) -> int:
        """Tokens that the caches hold."""
        return len(self._slot.text)

    def save(self, path: str | Path) -> None:
        """Write messages and caches to a safetensors file, for :meth:`vt_core.Model.load_session`.

        Raises:
            OutputError: the file cannot be written.
        """
        arrays, state = self._model.decoder.export(self._slot)
        session_file.save(
            path,
            arrays,
            {
                "model": self._model.identity,
                "options": _options_as_json(self._options),
                "messages": self.messages,
                "ids": self._slot.ids,
                "caches": state,
            },
        )

    @classmethod
    def load(cls, model: LoadedModel, path: str | Path) -> Session:
        """See :meth:`vt_core.Model.load_session`."""
        arrays, content = session_file.load(path, model.identity)
        with session_file.refused(path):
            given = dict(content["options"])
            sampling = dict(given.pop("sampling"))
            bias = sampling.pop("logit_bias").items()
            session = cls(
                model,
                request_options(**given, **sampling, logit_bias={int(token): value for token, value in bias}),
            )
            model.decoder.restore(session._slot, arrays, content["caches"])
            session._slot.text = [int(token) for token in content["ids"]]
            session.messages = [dict(message) for message in content["messages"]]
        return session

    def close(self) -> None:
        """Free the caches. The session can still be used; its next turn reads the conversation again."""
        self._model.decoder.close(self._slot)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _options_as_json(options: RequestOptions) -> dict[str, Any]:
    def plain(value: Any) -> dict[str, Any]:
        return {field.name: getattr(value, field.name) for field in fields(value)}

    sampling = plain(options.sampling)
    values = {**plain(options), "sampling": {**sampling, "logit_bias": dict(sampling["logit_bias"])}}
    grammar = values.pop("grammar")
    return values if grammar is None else {**values, grammar.option: grammar.source}
