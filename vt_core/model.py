"""A language model for applications: prompts in, text out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vt_core.decode import arguments, prompts
from vt_core.decode.options import request_options
from vt_core.decode.results import Chunk, Generation, Score, Stats
from vt_core.decode.scoring import score_pairs
from vt_core.errors import OptionError, PromptError, VtError, shorten
from vt_core.loaded import LoadedModel
from vt_core.many import generate_many
from vt_core.session import Session
from vt_core.types import Ids
from vt_core.vocab.tokenizer import Prompt

#: Most likely tokens that :meth:`Model.score_each` lists for a position.
MAX_TOP = 1000

__all__ = ["Chunk", "Generation", "Model", "Score", "Session", "Stats"]


class Model(LoadedModel):
    """A language model whose vocabulary tables stay on disk. :func:`vt_core.load` makes one.

    Several threads may use a model at once, and several streams may be open: their requests run together.
    Close it, or use it in a ``with`` statement, to free its memory at a known moment.
    """

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        approximate: bool = False,
        dynamic: bool = True,
        template_arguments: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        draft: str = "auto",
        draft_tokens: int | None = None,
        batch: str = "together",
        json_schema: object = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Generation:
        """Generate a whole answer. Arguments and errors are those of :meth:`stream`."""
        result = None
        for chunk in self.stream(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            system=system,
            raw=raw,
            approximate=approximate,
            dynamic=dynamic,
            template_arguments=template_arguments,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            draft=draft,
            draft_tokens=draft_tokens,
            batch=batch,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
        ):
            result = chunk.result
        assert result is not None, "a stream ends with its result"
        return result

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        approximate: bool = False,
        dynamic: bool = True,
        template_arguments: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        draft: str = "auto",
        draft_tokens: int | None = None,
        batch: str = "together",
        json_schema: object = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Generator[Chunk, None, None]:
        """Generate an answer piece by piece. The last chunk carries the :class:`Generation`.

        The sampling steps run in this order: penalties, logit bias, temperature, top-k, top-p, min-p, draw.

        Args:
            prompt: text, which goes through the chat template if the model has one; or chat messages, such
                as ``[{"role": "user", "content": "Hi"}]``; or token ids.
            max_tokens: most tokens to generate, at least 1.
            stop: text, or texts, that end the answer and are not part of it. May be a special token.
            system: system message for a text prompt.
            raw: whether to skip the chat template for a text prompt.
            approximate: whether to skip verification, as the published method does. If False, every token is
                the full head's choice.
            dynamic: whether the prompt's tokens join the head. If False, the head has its static rows only.
            template_arguments: arguments of the chat template, such as ``{"enable_thinking": False}``.
            temperature: 0 takes the most likely token; larger values make unlikely tokens more likely.
            top_k: keep the ``top_k`` most likely tokens; 0 keeps all.
            top_p: keep the most likely tokens up to this total probability; 1 keeps all.
            min_p: keep tokens at least ``min_p`` times as likely as the most likely one; 0 keeps all.
            seed: seed of the draws; the same seed gives the same text.
            repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that occur
                in the prompt or the answer; 1 is off.
            presence_penalty: subtracted once from the logits of tokens that occur; 0 is off.
            frequency_penalty: subtracted from a token's logit for each time it occurs; 0 is off.
            logit_bias: added to logits, by token id.
            draft: ``auto`` drafts tokens where the task has an n-gram table, ``ngram`` from the request's own
                text too, ``none`` never. With a schema, expression or grammar, ``auto`` is ``ngram``. Drafts
                save time and do not change the text.
            draft_tokens: draft as many tokens for each read as are proposed, at most this many. None learns
                how many save the most time.
            batch: how the model's body runs while there are other requests: ``together`` runs it once for
                all; ``alone`` once for each, which gives this request bit for bit what it has alone.
            json_schema: the answer is JSON on one line that this schema allows: a dictionary, JSON text, or a
                pydantic model class. This and the next two need the extra ``constraints``.
            regex: the answer as a whole matches this regular expression.
            grammar: the answer follows this grammar, in llguidance's dialect of Lark.

        Raises:
            PromptError: the prompt is empty, too long, of the wrong type, or has ids without a row.
            OptionError: an argument has the wrong type or is out of range.
            ConstraintError: a schema, expression or grammar cannot be enforced, or allows no text.
            BackendError: the model is closed.
            VtError: learned ids cannot be saved; raised after the last chunk.
        """
        options = request_options(
            max_tokens=max_tokens,
            stop=stop,
            system=system,
            raw=raw,
            approximate=approximate,
            dynamic=dynamic,
            template_arguments=template_arguments,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            draft=draft,
            draft_tokens=draft_tokens,
            batch=batch,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
        )
        ids = self.encode(
            prompt, system=options.system, raw=options.raw, template_arguments=options.template_arguments
        )
        return self.run(ids, options)

    def generate_many(
        self,
        prompts: Iterable[Prompt | Mapping[str, Any]],
        *,
        ordered: bool = False,
        return_errors: bool = False,
        **options: Any,
    ) -> Generator[tuple[int, Generation | VtError], None, None]:
        """Answer many prompts, :attr:`slots` of them at once.

        >>> for index, result in model.generate_many(["Hi", {"prompt": "Ho", "seed": 7}], max_tokens=50):
        ...     print(index, result.text)

        Args:
            prompts: as for :meth:`stream`, or dictionaries with a ``prompt`` and options of its own. They are
                taken one by one as there is room, so they may come from a generator.
            ordered: whether results come in the order of the prompts. If False, they come as they finish.
            return_errors: whether the error of a prompt that cannot be answered is its result. If False, it
                is raised, and ends all others.
            options: for all prompts; those of :meth:`stream`.

        Yields:
            The index of a prompt, from 0, and its result.

        Raises:
            VtError: as :meth:`stream`.
        """
        if not isinstance(prompts, Iterable) or isinstance(prompts, (str, Mapping)):
            raise PromptError(f"generate_many takes a list of prompts, not {shorten(prompts)}")
        return generate_many(
            self.stream, self.slots, prompts, options, ordered=ordered, return_errors=return_errors
        )

    def session(
        self,
        *,
        system: str | None = None,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        approximate: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        draft: str = "auto",
        draft_tokens: int | None = None,
        batch: str = "together",
        json_schema: object = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Session:
        """Start a conversation whose caches are kept between turns. The arguments are those of
        :meth:`stream`, and hold for every turn.

        Raises:
            PromptError: the model has no chat template.
            OptionError: an argument has the wrong type or is out of range.
            BackendError: the model is closed.
        """
        options = request_options(
            system=system,
            max_tokens=max_tokens,
            stop=stop,
            approximate=approximate,
            template_arguments=template_arguments,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            draft=draft,
            draft_tokens=draft_tokens,
            batch=batch,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
        )
        return Session(self, options)

    def load_session(self, path: str | Path) -> Session:
        """Continue a conversation that :meth:`Session.save` wrote, with the options that it had.

        Raises:
            SessionError: the file cannot be read, or belongs to another model, backend or float type.
        """
        return Session.load(self, path)

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        system: str | None = None,
        raw: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> Score:
        """Score a continuation of a prompt with the full head.

        Args:
            prompt: as for :meth:`stream`, and so are ``system``, ``raw`` and ``template_arguments``.
            continuation: token ids, or text, which is tokenized by itself.

        Raises:
            PromptError: either is empty or has ids without a row, or together they are too long.
            BackendError: the model is closed.
        """
        ids = self.encode(prompt, system=system, raw=raw, template_arguments=template_arguments)
        if isinstance(continuation, str):
            continuation = list(self.tokenizer.encode_output(continuation))
        (result,) = self.score_each([(list(ids), continuation)])
        return result

    def score_each(
        self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]], *, top: int = 0
    ) -> Iterator[Score]:
        """Score many pairs of prompt and continuation, both token ids, in order.

        This is faster than one :meth:`score` after the other: the full head is read once for many positions.

        Args:
            pairs: prompts and continuations.
            top: how many of the likeliest tokens each :class:`Score` lists for each position.

        Raises:
            PromptError: as :meth:`score`.
            OptionError: ``top`` is not a whole number between 0 and 1000.
            BackendError: the model is closed.
        """
        if not isinstance(pairs, Iterable):
            raise PromptError(f"score_each takes pairs of token ids; {shorten(pairs)} is not iterable")
        count = arguments.whole("top", top)
        if not 0 <= count <= MAX_TOP:
            raise OptionError(f"top is {count}, but it must be between 0 and {MAX_TOP}")
        return score_pairs(self.decoder, pairs, self.rows, self.context, count, self._scheduler.hold)

    def encode(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> Ids:
        """Token ids of a prompt, int64 ``[n]``. Arguments are those of :meth:`stream`.

        Raises:
            PromptError: the prompt is empty or of the wrong type.
        """
        options = request_options(system=system, raw=raw, template_arguments=template_arguments)
        return prompts.encode_prompt(
            self.tokenizer,
            prompt,
            system=options.system,
            raw=options.raw,
            template_arguments=options.template_arguments,
        )
