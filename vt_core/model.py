"""A loaded model: prompts in, text out."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.decode import arguments, prompts
from vt_core.decode.answer import Answer
from vt_core.decode.backend import backend as import_backend
from vt_core.decode.constraints.engine import Engine
from vt_core.decode.decoder import Decoder
from vt_core.decode.drafting import Acceptance, Drafter
from vt_core.decode.metrics import Clock, ProcessMemory
from vt_core.decode.options import RequestOptions, request_options
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.results import Chunk, Generation, Score, Stats
from vt_core.decode.sampling import Sampler
from vt_core.decode.scheduler import BATCH, Scheduler
from vt_core.decode.scoring import score
from vt_core.decode.stopping import StopMatcher
from vt_core.decode.types import Slot
from vt_core.errors import BackendError, OptionError, PromptError, VocabularyError, VtError, shorten
from vt_core.files.model_dir import ModelDirectory
from vt_core.host import trim_heap
from vt_core.many import generate_many
from vt_core.session import Session
from vt_core.vocab.active import Ids
from vt_core.vocab.learning import Learned, LearnedFile
from vt_core.vocab.ngrams import NgramTable
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import Prompt, Tokenizer

#: Most likely tokens that :meth:`Model.score_each` lists for a position.
MAX_TOP = 1000

__all__ = ["Chunk", "Generation", "Model", "Score", "Session", "Stats"]


class Model:
    """A language model whose vocabulary tables stay on disk. :func:`vt_core.load` makes one.

    Several threads may use a model at once, and several streams may be open: their requests run together.
    Close it, or use it in a ``with`` statement, to free its memory at a known moment.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        decoder: Decoder[Any, Any],
        tokenizer: Tokenizer,
        *,
        backend: str,
        quantize: str | None = None,
        clock: Clock = time.perf_counter,
        learned_file: LearnedFile | None = None,
        adapter: str | None = None,
        slots: int = BATCH,
        cache_bytes: int | None = None,
    ) -> None:
        """Join the parts of a model; applications call :func:`vt_core.load`.

        Args:
            directory: the model directory.
            decoder: the model body and its head, without static rows yet.
            tokenizer: the directory's tokenizer.
            backend: name of the decoder's backend.
            quantize: how weights were quantized while loading.
            clock: clock of the measurements.
            learned_file: where learned ids are kept; None keeps them as long as the model is loaded.
            adapter: digest of the adapter's layers, if there is one.
            slots: requests that run at once.
            cache_bytes: most bytes of their caches; None for no bound.
        """
        self.directory = directory  #: the model directory
        self.tokenizer = tokenizer  #: the full tokenizer
        self.backend = backend  #: name of the backend
        self.quantization = quantize or directory.quantization  #: how the weights are quantized, or None
        self.rows = decoder.head.vocabulary.rows  #: rows that have a token; padding rows are left out
        self.eos_ids = self.tokenizer.eos_ids(self.rows)  #: full ids that end an answer
        self._decoder: Decoder[Any, Any] | None = decoder
        self._adapter = adapter
        self._clock = clock
        self._memory = ProcessMemory()
        self._policy = BlockPolicy()
        self.slots = slots  #: requests that run at once; others wait
        self._scheduler = Scheduler(decoder, self._policy.costs, clock, slots, cache_bytes)
        self._tables: tuple[NgramTable, ...] = ()
        self._acceptance = Acceptance()
        self._learned_file = learned_file
        self._learned = Learned(() if learned_file is None else learned_file.load())

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory and files. Requests that run end with a BackendError.

        Closing twice is allowed; any other use of a closed model raises BackendError.
        """
        self._scheduler.close()
        self._decoder = None
        gc.collect()  # frameworks' modules refer to themselves
        import_backend(self.backend).empty_cache()
        trim_heap()

    @property
    def decoder(self) -> Decoder[Any, Any]:
        """The model body and its head.

        Raises:
            BackendError: the model is closed.
        """
        if self._decoder is None:
            raise BackendError("this model is closed; load it again")
        return self._decoder

    @property
    def identity(self) -> dict[str, Any]:
        """What the caches of a text depend on, apart from the text: weights, backend and float type."""
        return {
            "model": self.directory.manifest.digest,
            "backend": self.backend,
            "dtype": self.decoder.dtype,
            "quantization": self.quantization,
            "adapter": self._adapter,
        }

    @property
    def context(self) -> int | None:
        """Most tokens of a prompt and its answer together; None where the configuration gives no limit."""
        return self.directory.context

    def set_task(self, *tasks: TaskVocabulary) -> None:
        """Replace the static rows by those of task vocabularies (their union), or of the rank prior if none.

        Raises:
            VocabularyError: a vocabulary belongs to another tokenizer, or is not a TaskVocabulary.
            BackendError: a request of this model is running, or the model is closed.
        """
        from vt_core.vocab.static import static_ids

        for task in tasks:
            if not isinstance(task, TaskVocabulary):
                raise VocabularyError(f"{shorten(task)} is not a TaskVocabulary; load it first")
        self.set_static(static_ids(self.directory, self.tokenizer, tasks))

    def set_static(self, ids: Iterable[int]) -> None:
        """Replace the static rows by those of full ids; ids of padding rows are ignored.

        Raises:
            PromptError: an id is not a whole number, or is negative.
            BackendError: a request of this model is running, or the model is closed.
        """
        chosen = prompts.token_ids(ids, "static set")
        chosen = chosen[chosen < self.rows]
        prompts.check_ids(chosen, self.rows)
        with self._scheduler.hold_idle():
            self.decoder.head.set_static(chosen)
            self.decoder.head.set_learned(self._learned.ids)
        self._memory.sample()

    def set_drafts(self, *tables: NgramTable | str | Path) -> None:
        """Replace the n-gram tables that requests draft from. :func:`vt_core.load` takes those next to the
        task files.

        Raises:
            VocabularyError: a table cannot be read, or belongs to another tokenizer.
        """
        opened = [table if isinstance(table, NgramTable) else NgramTable.open(table) for table in tables]
        for table in opened:
            table.check(self.directory.manifest.tokenizer_digest)
        self._tables, self._acceptance = tuple(opened), Acceptance()

    def forget_learned(self) -> None:
        """Drop the rows that earlier requests had rescued. A file of learned ids is not changed.

        Raises:
            BackendError: a request of this model is running, or the model is closed.
        """
        with self._scheduler.hold_idle():
            self._learned = Learned()
            self.decoder.head.set_learned(())

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
                text too, ``none`` never. Drafts save time and do not change the text.
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

    def run(
        self, ids: Ids, options: RequestOptions, slot: Slot[Any] | None = None
    ) -> Generator[Chunk, None, None]:
        """Run full ids with checked options; applications call :meth:`stream` or a session.

        Args:
            ids: the prompt, int64 ``[n]``.
            options: of the request, apart from the prompt.
            slot: caches to go on from, and to keep; None uses caches of its own.

        Raises:
            PromptError: the prompt is empty or too long, or has ids without a row.
            BackendError: the model is closed.
        """
        prompts.check_prompt(ids, options.max_tokens, self.rows, self.context)
        request = self._request(options, slot)
        return self._run(request, ids, StopMatcher(options.stop))

    def copy_slot(self, slot: Slot[Any]) -> Slot[Any]:
        """A slot that holds the same as one that no request uses."""
        with self._scheduler.hold():
            return self.decoder.copy(slot)

    def inspect_slot(self, slot: Slot[Any]) -> tuple[Ids, int]:
        """The text that a slot holds, full ids int64 ``[n]``, and the bytes of its caches. A request that has
        just ended has let go of the slot afterwards.
        """
        with self._scheduler.hold():
            return np.array(slot.ids, dtype=np.int64), self.decoder.slot_bytes(slot)

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
        return self._score_each(pairs, count)

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

    def _request(self, options: RequestOptions, slot: Slot[Any] | None) -> Request:
        exact = not options.approximate and self.decoder.head.name != "full"
        drafts = options.draft == "ngram" or (options.draft == "auto" and bool(self._tables))
        # The first of the ids that end a text stands for its end in the tables.
        named = self.tokenizer.named_id("eos_token")
        ends = sorted(self.eos_ids, key=lambda token: (token != named, token))
        request = Request(
            self.decoder,
            Sampler(options.sampling, self.rows),
            options.max_tokens,
            self.eos_ids | self.tokenizer.special_ids(options.stop),
            self._policy if exact else None,
            self._clock,
            options.dynamic,
            slot,
            Drafter(self._acceptance, self._tables, rows=self.rows, eos_ids=ends) if drafts else None,
            self._policy.costs,
            options.batch == "together",
        )
        if options.grammar is not None:
            request.constraint = self._grammars.start(options.grammar)
            request.literals = self._grammars.literals(options.grammar)
            request.drafts_forced = options.draft != "none"
        return request

    @cached_property
    def _grammars(self) -> Engine:
        return Engine.of(self.tokenizer, self.rows, self.eos_ids)

    def _run(self, request: Request, ids: Ids, stops: StopMatcher) -> Generator[Chunk, None, None]:
        answer = Answer(request, self.tokenizer.stream(), stops, self._memory, self._scheduler)
        yield from answer.chunks(ids)
        result = answer.result(self.directory.manifest, self.backend, self.quantization)
        # Learned ids are saved before the last chunk: callers may stop there.
        failure = self._learn(request.checks.rescued, [*ids.tolist(), *answer.token_ids])
        yield Chunk(answer.rest, None, result)
        if failure is not None:
            raise failure

    def _score_each(
        self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]], top: int
    ) -> Generator[Score, None, None]:
        continuations: deque[Ids] = deque()

        def texts() -> Iterator[tuple[Ids, int]]:
            for pair in pairs:
                prompt, continuation = prompts.token_id_pair(pair)
                prompts.check_scored(prompt, continuation, self.rows, self.context)
                continuations.append(continuation)
                yield np.concatenate([prompt, continuation]), len(prompt)

        scores = score(self.decoder, texts(), min(top, self.rows))
        try:
            while True:
                with self._scheduler.hold():
                    scored = next(scores, None)
                if scored is None:
                    return
                ids = continuations.popleft()
                greedy = (scored.choices == ids).tolist()
                likeliest = zip(scored.top_ids.tolist(), scored.top_log_probs.tolist(), strict=True)
                yield Score(
                    tuple(ids.tolist()),
                    tuple(scored.log_probs.tolist()),
                    tuple(greedy),
                    tuple(tuple(zip(*pair, strict=True)) for pair in likeliest),
                )
        finally:
            scores.close()

    def _learn(self, rescued: Sequence[int], used: Sequence[int]) -> VtError | None:
        """Keep the rows of rescued tokens for later requests, and write the file of learned ids, if there is
        one. Returns the error if that failed.
        """
        with self._scheduler.hold():
            vocabulary = self.decoder.head.vocabulary
            static = vocabulary.ids[: vocabulary.static_size]
            if not self._learned.update([token for token in rescued if token not in static], used):
                return None
            self._scheduler.set_learned(self._learned.ids)
            try:
                if self._learned_file is not None:
                    self._learned_file.add(self._learned)
            except VtError as error:
                return error
        return None
