"""The results of a request."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Stats:
    """Measurements of one request, and the settings that it ran with. None: could not be measured."""

    prompt_tokens: int  #: tokens of the prompt, chat template included
    cached_tokens: int  #: of these, tokens that the caches of a session held already
    generated_tokens: int  #: tokens generated, an EOS token included
    head: str  #: how the head was held: ``prealloc``, ``split``, ``rebuild`` or ``full``
    backend: str  #: ``mlx`` or ``torch``
    device: str  #: device of the backend, such as ``cpu`` or ``cuda``
    dtype: str  #: float type of the computation
    quantization: str | None  #: of the weights, in their files or while loading: ``awq``, ``int8``…
    seed: int  #: seed of the sampler
    vocab_rows: int  #: rows of the model's vocabulary table, V
    static_rows: int  #: active rows of the task vocabulary or the rank prior
    learned_rows: int  #: active rows that earlier requests had rescued
    dynamic_rows: int  #: active rows that this request added: its prompt's and its rescues'
    vocab_bytes_full: int  #: bytes of the model's vocabulary tables
    vocab_bytes_resident: int  #: bytes of the active rows, spare capacity included
    ttft_s: float | None  #: seconds from the call to the first token, head construction included
    tpot_s: float | None  #: seconds per token after the first
    tokens_per_s: float | None  #: tokens after the first, per second
    peak_memory_bytes: int | None  #: peak bytes of the device's allocator, or else of this process
    peak_anonymous_bytes: int | None  #: peak bytes of this process that are not mapped files (Linux)
    verifications: int  #: times that the full head was read
    settled: int  #: tokens that were near ties, decided by the full head's own product of a few rows
    rescued: int  #: tokens that verification replaced
    rolled_back: int  #: decoding steps thrown away because they followed a wrong token
    verify_s: float  #: seconds spent on verification
    rescue_s: float  #: seconds spent on rewinding caches and reading rescued rows
    rolled_back_s: float  #: seconds spent on steps that were thrown away
    reads: int  #: passes of the body after the prompt
    tokens_per_read: float | None  #: tokens after the first, per read
    drafted: int  #: drafted tokens that were read
    accepted: int  #: of these, tokens that were right
    draft_s: float  #: seconds spent on drafting
    #: Reads by length of their drafts: the length, the number of reads by accepted tokens (0, 1, …), and the
    #: seconds of these reads.
    draft_lengths: tuple[tuple[int, tuple[int, ...], float], ...]
    # With a grammar, positions by what they needed; those that were taken back count as well.
    forced: int = 0  #: positions where the grammar allowed one token
    certain: int = 0  #: positions where all allowed rows were active, forced ones included
    gathered: int = 0  #: positions whose missing rows were read by themselves
    scanned: int = 0  #: positions where the full head decided
    grammar_s: float = 0.0  #: seconds spent on masks


@dataclass(frozen=True)
class Generation:
    """A finished answer."""

    text: str  #: the answer, without special tokens and stop strings
    token_ids: tuple[int, ...]  #: full ids, an EOS id included where one was generated
    finish_reason: str  #: ``stop`` (EOS or a stop string) or ``length`` (``max_tokens`` reached)
    exact: bool  #: whether every token is the full head's choice
    stats: Stats  #: measurements

    def to_dict(self) -> dict[str, Any]:
        """All fields in one flat dictionary that JSON can hold: what ``generate --json`` prints."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "exact": self.exact,
            **asdict(self.stats),
        }


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a continuation under the full head. Tuples have one entry per token."""

    token_ids: tuple[int, ...]  #: full ids of the continuation
    log_probs: tuple[float, ...]  #: natural logarithm of each token's probability, given the text before it
    greedy: tuple[bool, ...]  #: whether greedy decoding would choose this token here
    #: The likeliest tokens here, most likely first, as many as asked for: full ids and log-probabilities.
    top: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def log_prob(self) -> float:
        """Natural logarithm of the probability of the whole continuation."""
        return sum(self.log_probs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would give this continuation."""
        return all(self.greedy)


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer."""

    text: str  #: new text; may be empty
    token_id: int | None  #: full id of the token, None in the last chunk
    result: Generation | None = None  #: the whole answer, in the last chunk only
