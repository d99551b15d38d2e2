"""One answer in the making: token ids become text, times and counts."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from vt_core.decode.metrics import ProcessMemory, Stopwatch
from vt_core.decode.request import Request
from vt_core.decode.results import Chunk, Generation, Stats
from vt_core.decode.scheduler import Scheduler
from vt_core.decode.stopping import StopMatcher
from vt_core.files.manifest import Manifest
from vt_core.types import Ids
from vt_core.vocab.tokenizer import TextStream


@dataclass
class Answer:
    """Runs a request and collects what it generates. The stopwatch starts here."""

    request: Request
    detokenizer: TextStream
    stops: StopMatcher
    memory: ProcessMemory  #: sampled where a request holds the most
    scheduler: Scheduler  #: runs the request
    token_ids: list[int] = field(init=False, default_factory=list)  #: full ids generated so far
    text: str = field(init=False, default="")  #: text so far
    rest: str = field(init=False, default="")  #: text that was held back until the end
    finish_reason: str = field(init=False, default="length")  #: as in :class:`Generation`

    def __post_init__(self) -> None:
        self._watch = Stopwatch(self.request.clock)
        self._prompt_tokens = 0

    def chunks(self, prompt: Ids) -> Generator[Chunk, None, None]:
        """Run a prompt of full ids and yield a chunk per token, the last chunk with the result excepted."""
        self._prompt_tokens = len(prompt)
        tokens = self.scheduler.run(self.request, prompt)
        try:
            for token in tokens:
                self._watch.token()
                if self._watch.tokens == 1:
                    self.memory.sample()
                self.token_ids.append(token)
                ended = token in self.request.eos_ids
                piece = "" if ended else self.stops.push(self.detokenizer.push(token))
                self.text += piece
                yield Chunk(piece, token)
                if ended or self.stops.stopped:
                    self.finish_reason = "stop"
                    break
        finally:
            tokens.close()
        self._finish()

    def _finish(self) -> None:
        if not self.stops.stopped:
            self.rest = self.stops.push(self.detokenizer.finish()) + self.stops.finish()
        if self.request.constraint is not None and self.request.constraint.finished:
            self.finish_reason = "stop"
        if self.stops.stopped:  # also a stop string that the last bytes of the text completed
            self.finish_reason = "stop"
        self.text += self.rest
        self.memory.sample()

    def result(self, manifest: Manifest, backend: str, quantization: str | None) -> Generation:
        """The finished answer of a model with this manifest, backend and kind of quantization."""
        request, checks, decoder = self.request, self.request.checks, self.request.decoder
        head = decoder.head
        allocated = decoder.peak_memory()
        stats = Stats(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=request.reused,
            generated_tokens=len(self.token_ids),
            head=head.name,
            backend=backend,
            device=decoder.device,
            dtype=decoder.dtype,
            quantization=quantization,
            seed=request.sampler.settings.seed,
            vocab_rows=manifest.vocab_rows,
            static_rows=head.vocabulary.static_size,
            learned_rows=head.vocabulary.learned_size,
            dynamic_rows=request.dynamic_rows,
            vocab_bytes_full=manifest.table_bytes,
            vocab_bytes_resident=request.head_bytes,
            ttft_s=self._watch.ttft_s,
            tpot_s=self._watch.tpot_s,
            tokens_per_s=self._watch.tokens_per_s,
            peak_memory_bytes=self.memory.peak if allocated is None else allocated,
            peak_anonymous_bytes=self.memory.anonymous,
            verifications=checks.verifications,
            rescued=len(checks.rescued),
            settled=checks.settled,
            rolled_back=checks.rolled_back,
            verify_s=checks.verify_s,
            rescue_s=checks.rescue_s,
            rolled_back_s=checks.rolled_back_s,
            **self._draft_stats(),
            **self._constraint_stats(),
        )
        exact = request.policy is not None or head.name == "full"
        return Generation(self.text, tuple(self.token_ids), self.finish_reason, exact, stats)

    def _draft_stats(self) -> dict[str, Any]:
        drafts = self.request.drafts
        return {
            "reads": drafts.reads,
            "tokens_per_read": (len(self.token_ids) - 1) / drafts.reads if drafts.reads else None,
            "drafted": drafts.drafted,
            "accepted": drafts.accepted,
            "draft_s": drafts.draft_s,
            "draft_lengths": tuple(
                (length, tuple(found.accepted), found.seconds)
                for length, found in sorted(drafts.lengths.items())
            ),
        }

    def _constraint_stats(self) -> dict[str, Any]:
        guide = self.request.guide
        if guide is None:
            return {}
        counts = guide.counts
        return {
            "forced": counts.forced,
            "certain": counts.certain,
            "gathered": counts.gathered,
            "scanned": counts.scanned,
            "grammar_s": guide.constraint.seconds,
        }
