"""A loaded model: prompts in, text out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

import numpy as np

from vt_core.decode.backend import Decoder
from vt_core.decode.metrics import Clock, ProcessMemory, Stopwatch
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.results import Chunk, Generation, Score
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.decode.scoring import score
from vt_core.decode.stopping import StopMatcher
from vt_core.errors import BackendError, OptionError, PromptError
from vt_core.files.model_dir import ModelDirectory
from vt_core.vocab.active import Ids
from vt_core.vocab.learning import Learned, LearnedFile
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import Message, Prompt, Tokenizer


class Model:
    """A model body without its vocabulary tables, and a reduced head. One request at a time."""

    def __init__(
        self,
        directory: ModelDirectory,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        backend: str,
        quantize: str | None = None,
        clock: Clock = time.perf_counter,
        learned_file: LearnedFile | None = None,
    ) -> None:
        self.directory = directory
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.backend = backend
        self.quantization = quantize or directory.quantization
        self.rows = decoder.head.vocabulary.rows  #: those of tokens: padding behind them is no part of it
        self.eos_ids = self.tokenizer.eos_ids(self.rows)
        self._clock = clock
        self._memory = ProcessMemory()
        self._busy = threading.Lock()
        self._policy = BlockPolicy()
        self._learned_file = learned_file
        self._learned = Learned(() if learned_file is None else learned_file.load())

    def set_task(self, *tasks: TaskVocabulary) -> None:
        """Swap the static rows for those of the given task vocabularies (their union), or of the rank prior
        if none.

        Raises:
            VocabularyError: a vocabulary belongs to another tokenizer.
        """
        from vt_core.vocab.static import static_ids

        self.set_static(static_ids(self.directory, self.tokenizer, tasks))

    def set_static(self, ids: Ids) -> None:
        """Swap the static rows for those of the given full ids, without those of padding."""
        with self._busy_with_one():
            self.decoder.head.set_static(ids[ids < self.rows])
            self.decoder.head.set_learned(self._learned.ids)
        self._memory.sample()

    def forget_learned(self) -> None:
        """Begin anew with learning: rows that earlier requests brought are dropped; a file keeps its own."""
        with self._busy_with_one():
            self._learned = Learned()
            self.decoder.head.set_learned(())

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """Generate a whole answer; takes what :meth:`stream` takes."""
        result = None
        for chunk in self.stream(prompt, **options):
            result = chunk.result
        assert result is not None, "a stream ends with its result"
        return result

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        approximate: bool = False,
        dynamic: bool = True,
        template_arguments: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """Generate an answer piece by piece.

        Args:
            prompt: text (through the chat template, unless ``raw`` or the model has none), chat messages, or
                full ids.
            max_tokens: how many tokens at the most.
            stop: texts that end the answer; they are not part of it. A special token is one, too.
            system: a system message before a text prompt.
            raw: give text to the model without the chat template.
            approximate: believe the reduced head, as the published method does. Otherwise every token is the
                full head's choice.
            dynamic: whether the rows of the prompt's tokens join the head; without them it is static only.
            template_arguments: passed on to the chat template, such as ``{"enable_thinking": False}``.
            sampling: fields of :class:`~vt_core.decode.sampling.SamplerSettings`.

        Raises:
            PromptError: the prompt is empty, too long, or has ids without a row.
            OptionError: a value is out of range.
            BackendError: another request of this model is still running.
        """
        settings = sampler_settings(sampling)
        if max_tokens < 1:
            raise OptionError(f"max_tokens is {max_tokens}, but it must be at least 1")
        ids = self.encode(prompt, system=system, raw=raw, template_arguments=template_arguments)
        self._check_prompt(ids, max_tokens)
        stops = [stop] if isinstance(stop, str) else list(stop)
        exact = not approximate and self.decoder.head.name != "full"
        request = Request(
            self.decoder,
            Sampler(settings, self.rows),
            max_tokens,
            self.eos_ids | self.tokenizer.special_ids(stops),
            self._policy if exact else None,
            self._clock,
            dynamic,
        )
        return self._run(request, ids, StopMatcher(stops))

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        system: str | None = None,
        raw: bool = False,
        template_arguments: dict[str, Any] | None = None,
    ) -> Score:
        """How likely the full head finds a continuation of a prompt.

        Args:
            prompt: as for :meth:`stream`, and so are the other arguments.
            continuation: full ids, or text, which is encoded by itself.

        Raises:
            PromptError: either is empty or has ids without a row, or together they are too long.
            BackendError: another request of this model is still running.
        """
        ids = self.encode(prompt, system=system, raw=raw, template_arguments=template_arguments)
        if isinstance(continuation, str):
            scored: Sequence[int] = self.tokenizer.encode(continuation, special=False).tolist()
        else:
            scored = continuation
        (result,) = self.score_each([(ids.tolist(), scored)])
        return result

    def score_each(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Score]:
        """Scores of many pairs of prompt and continuation, both full ids, in order. Faster than one by one:
        the full head is read for many positions together.

        Raises:
            PromptError: as :meth:`score`.
            BackendError: another request of this model is still running.
        """
        continuations: deque[Ids] = deque()

        def texts() -> Iterator[tuple[Ids, int]]:
            for prompt, continuation in pairs:
                parts = np.array(prompt, dtype=np.int64), np.array(continuation, dtype=np.int64)
                ids = np.concatenate(parts)
                self._check_text(ids, *map(len, parts))
                continuations.append(parts[1])
                yield ids, len(parts[0])

        with self._busy_with_one(), closing(score(self.decoder, texts())) as scores:
            for scored in scores:
                ids = continuations.popleft()
                yield Score(
                    tuple(ids.tolist()),
                    tuple(scored.log_probs.tolist()),
                    tuple((scored.choices == ids).tolist()),
                )

    def encode(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        raw: bool = False,
        template_arguments: dict[str, Any] | None = None,
    ) -> Ids:
        """Full ids of a prompt, int64 ``[n]``, as :meth:`stream` would run it."""
        if not isinstance(prompt, str):
            if system is not None:
                raise PromptError("a system message goes with a text prompt; put it into the chat messages")
            items = list(prompt)
            if items and all(isinstance(item, Mapping) for item in items):
                messages = cast("list[Message]", items)
                return self.tokenizer.encode_chat(messages, **template_arguments or {})
            if not all(isinstance(item, (int, np.integer)) for item in items):
                raise PromptError(
                    "a prompt is text, chat messages, or token ids; this is a mixture or neither"
                )
            return np.array(items, dtype=np.int64)
        if not prompt:
            raise PromptError("the prompt is empty; give some text")
        if raw or self.tokenizer.chat_template is None:
            if system is not None:
                raise PromptError(
                    "a system message needs the chat template; leave it out, or put it into the raw prompt"
                )
            return self.tokenizer.encode(prompt)
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        return self.tokenizer.encode_chat(messages, **template_arguments or {})

    @property
    def context(self) -> int | None:
        """Tokens that fit the model's context, where its configuration says so."""
        return self.directory.context

    def _check_prompt(self, ids: Ids, max_tokens: int) -> None:
        if len(ids) == 0:
            raise PromptError("the prompt is empty; give at least one token")
        self._check_ids(ids)
        if self.context is not None and len(ids) + max_tokens > self.context:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, with {max_tokens} to generate more than the context of "
                f"{self.context}; shorten it or lower --max-tokens"
            )

    def _check_text(self, ids: Ids, prompt: int, continuation: int) -> None:
        """Whether a text of so many prompt and continuation tokens can be scored."""
        for part, count in (("prompt", prompt), ("continuation", continuation)):
            if count == 0:
                raise PromptError(f"the {part} to score is empty; give at least one token")
        self._check_ids(ids)
        # The last token is only chosen, never read.
        if self.context is not None and len(ids) - 1 > self.context:
            raise PromptError(
                f"the prompt has {prompt} tokens and its continuation {continuation}, more than the context "
                f"of {self.context}; shorten them"
            )

    def _check_ids(self, ids: Ids) -> None:
        outside = ids[(ids < 0) | (ids >= self.rows)]
        if len(outside):
            raise PromptError(
                f"the text holds token id {outside[0]}, but the model's tokens are 0 to {self.rows - 1}; "
                "use ids of this model's tokenizer"
            )

    def _run(self, request: Request, ids: Ids, stops: StopMatcher) -> Iterator[Chunk]:
        with self._busy_with_one():
            watch = Stopwatch(self._clock)
            text = self.tokenizer.stream()
            generated: list[int] = []
            shown = ""
            ended = False
            head = self.decoder.head
            dynamic_rows = resident = 0
            tokens = request.run(ids)
            try:
                for token in tokens:
                    watch.token()
                    if watch.tokens == 1:
                        self._memory.sample()
                    # Taken here: the rows of the request are gone once its last token is out.
                    dynamic_rows, resident = head.vocabulary.dynamic_size, head.nbytes
                    generated.append(token)
                    last = token in request.eos_ids
                    piece = "" if last else stops.push(text.push(token))
                    shown += piece
                    yield Chunk(piece, token)
                    ended = stops.stopped or last
                    if ended:
                        break
            finally:
                tokens.close()  # type: ignore[attr-defined]
            rest = "" if stops.stopped else stops.push(text.finish()) + stops.finish()
            self._memory.sample()
            checks = request.checks
            result = self._result(
                text=shown + rest,
                token_ids=tuple(generated),
                generated_tokens=len(generated),
                finish_reason="stop" if ended or stops.stopped else "length",
                prompt_tokens=len(ids),
                exact=request.policy is not None or head.name == "full",
                seed=request.sampler.settings.seed,
                dynamic_rows=dynamic_rows,
                vocab_bytes_resident=resident,
                ttft_s=watch.ttft_s,
                tpot_s=watch.tpot_s,
                tokens_per_s=watch.tokens_per_s,
                verifications=checks.verifications,
                rescued=len(checks.rescued),
                rolled_back=checks.rolled_back,
                verify_s=checks.verify_s,
                rescue_s=checks.rescue_s,
                rolled_back_s=checks.rolled_back_s,
            )
            news = self._learn(checks.rescued, [*ids.tolist(), *generated])
            yield Chunk(rest, None, result)
            # Last, so that a file that cannot be written costs nobody an answer.
            if news and self._learned_file is not None:
                self._learned_file.add(self._learned)

    def _learn(self, rescued: Sequence[int], used: Sequence[int]) -> bool:
        """Keep the rows of rescued tokens for the next requests, unless they are static; True when that
        changed.
        """
        vocabulary = self.decoder.head.vocabulary
        static = vocabulary.ids[: vocabulary.static_size]
        news = self._learned.update([token for token in rescued if token not in static], used)
        if news:
            self.decoder.head.set_learned(self._learned.ids)
        return news

    def _busy_with_one(self) -> _Busy:
        return _Busy(self._busy)

    def _result(self, **request: Any) -> Generation:
        """The result of a request: what is said of it, and what holds for the model."""
        head = self.decoder.head
        allocated = self.decoder.peak_memory()
        return Generation(
            head=head.name,
            backend=self.backend,
            device=self.decoder.device,
            dtype=self.decoder.dtype,
            quantization=self.quantization,
            vocab_rows=self.directory.manifest.vocab_rows,
            static_rows=head.vocabulary.static_size,
            learned_rows=head.vocabulary.learned_size,
            vocab_bytes_full=self.directory.manifest.table_bytes,
            peak_memory_bytes=self._memory.peak if allocated is None else allocated,
            peak_anonymous_bytes=self._memory.anonymous,
            **request,
        )


class _Busy:
    """Holds a model for one request."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise BackendError("this model is in the middle of a request; finish or close its stream first")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def sampler_settings(sampling: dict[str, Any]) -> SamplerSettings:
    """Settings from keyword arguments.

    Raises:
        OptionError: a name is unknown or a value is out of range.
    """
    unknown = sampling.keys() - SamplerSettings.__dataclass_fields__.keys()
    if unknown:
        raise OptionError(f"unknown generation option {sorted(unknown)[0]!r}")
    return SamplerSettings(**sampling)
