"""A model in memory: its parts, its rows, and the requests on it, given as token ids and checked options."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.decode import prompts
from vt_core.decode.answer import Answer
from vt_core.decode.backend import backend as import_backend
from vt_core.decode.constraints.engine import Engine
from vt_core.decode.decoder import Decoder
from vt_core.decode.drafting import Acceptance, Drafter
from vt_core.decode.metrics import Clock, ProcessMemory
from vt_core.decode.options import RequestOptions
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.results import Chunk
from vt_core.decode.sampling import Sampler
from vt_core.decode.scheduler import BATCH, Scheduler
from vt_core.decode.stopping import StopMatcher
from vt_core.decode.types import Slot
from vt_core.errors import BackendError, VocabularyError, VtError, shorten
from vt_core.files.model_dir import ModelDirectory
from vt_core.host import trim_heap
from vt_core.types import Ids
from vt_core.vocab.learning import Learned, LearnedFile
from vt_core.vocab.ngrams import NgramTable
from vt_core.vocab.static import static_ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import TextStream, Tokenizer


class LoadedModel:
    """The base of :class:`vt_core.model.Model`, which adds what takes prompts.

    Several threads may use it at once; their requests run together.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        decoder: Decoder[Any, Any],
        tokenizer: Tokenizer,
        *,
        backend: str,
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
            clock: clock of the measurements.
            learned_file: where learned ids are kept; None keeps them as long as the model is loaded.
            adapter: digest of the adapter's layers, if there is one.
            slots: requests that run at once.
            cache_bytes: most bytes of their caches; None for no bound.
        """
        self.directory = directory  #: the model directory
        self.tokenizer = tokenizer  #: the full tokenizer
        self.backend = backend  #: name of the backend
        self.quantization = directory.quantization  #: how the weights are quantized, or None
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
        #: Of greedy requests, and of sampled ones, whose drafts are right less often.
        self._acceptance = Acceptance(), Acceptance()
        self._learned_file = learned_file
        self._learned = Learned(() if learned_file is None else learned_file.load())

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
        identity = {
            "model": self.directory.manifest.digest,
            "backend": self.backend,
            "dtype": self.decoder.dtype,
            "quantization": self.quantization,
            "adapter": self._adapter,
        }
        # Windows are kept whole there.
        return identity | {"compiled": True} if self.decoder.compiled else identity

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
        self._tables, self._acceptance = tuple(opened), (Acceptance(), Acceptance())

    def forget_learned(self) -> None:
        """Drop the rows that earlier requests had rescued. A file of learned ids is not changed.

        Raises:
            BackendError: a request of this model is running, or the model is closed.
        """
        with self._scheduler.hold_idle():
            self._learned = Learned()
            self.decoder.head.set_learned(())

    def run(
        self,
        ids: Ids,
        options: RequestOptions,
        slot: Slot[Any] | None = None,
        shown: Mapping[int, str] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Run full ids with checked options; applications call :meth:`stream` or a session.

        Args:
            ids: the prompt, int64 ``[n]``.
            options: of the request, apart from the prompt.
            slot: caches to go on from, and to keep; None uses caches of its own.
            shown: special tokens that the text shows, and how.

        Raises:
            PromptError: the prompt is empty or too long, or has ids without a row.
            BackendError: the model is closed.
        """
        prompts.check_prompt(ids, options.max_tokens, self.rows, self.context)
        request = self._request(options, slot)
        return self._run(request, ids, StopMatcher(options.stop), self.tokenizer.stream(shown))

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

    def _run(
        self, request: Request, ids: Ids, stops: StopMatcher, text: TextStream
    ) -> Generator[Chunk, None, None]:
        answer = Answer(request, text, stops, self._memory, self._scheduler)
        yield from answer.chunks(ids)
        result = answer.result(self.directory.manifest, self.backend, self.quantization)
        # Learned ids are saved before the last chunk: callers may stop there.
        failure = self._learn(request.checks.rescued, [*ids.tolist(), *answer.token_ids])
        yield Chunk(answer.rest, None, result)
        if failure is not None:
            raise failure

    def _request(self, options: RequestOptions, slot: Slot[Any] | None) -> Request:
        exact = not options.approximate and self.decoder.head.name != "full"
        # Answers that follow a grammar repeat their own parts, and often copy from the prompt.
        likely = bool(self._tables) or options.grammar is not None or options.draft_tokens is not None
        drafts = options.draft == "ngram" or (options.draft == "auto" and likely)
        # The first of the ids that end a text stands for its end in the tables.
        named = self.tokenizer.named_id("eos_token")
        ends = sorted(self.eos_ids, key=lambda token: (token != named, token))
        acceptance = self._acceptance[options.sampling.temperature > 0]
        request = Request(
            self.decoder,
            Sampler(options.sampling, self.rows),
            options.max_tokens,
            self.eos_ids | self.tokenizer.special_ids(options.stop),
            self._policy if exact else None,
            self._clock,
            options.dynamic,
            slot,
            Drafter(acceptance, self._tables, rows=self.rows, eos_ids=ends) if drafts else None,
            self._policy.costs,
            options.batch == "together",
        )
        request.draft_tokens = options.draft_tokens
        if options.grammar is not None:
            request.constraint = self._grammars.start(options.grammar)
            request.literals = self._grammars.literals(options.grammar)
            request.drafts_forced = options.draft != "none"
        return request

    @cached_property
    def _grammars(self) -> Engine:
        return Engine.of(self.tokenizer, self.rows, self.eos_ids)

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
