"""What a request gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Generation:
    """A finished text and how it came about. Times in seconds, sizes in bytes; None where it could not be
    measured.
    """

    text: str
    token_ids: tuple[int, ...]  #: full ids, the EOS id included where one was generated
    finish_reason: str  #: ``stop`` (EOS or a stop string) or ``length``
    prompt_tokens: int
    generated_tokens: int
    exact: bool  #: whether every token is the full head's choice
    head: str
    backend: str
    device: str
    dtype: str
    quantization: str | None  #: of layers, in their files or while they are read: ``awq``, ``int8``…
    seed: int
    vocab_rows: int  #: V
    static_rows: int
    learned_rows: int  #: rescued by earlier requests, and kept
    dynamic_rows: int  #: of this request: its prompt's and its rescues'
    vocab_bytes_full: int  #: the model's tables
    vocab_bytes_resident: int  #: active rows with spare capacity
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None
    peak_memory_bytes: int | None
    peak_anonymous_bytes: int | None
    verifications: int  #: readings of the full head
    rescued: int  #: tokens that the full head put in place of others
    rolled_back: int  #: steps that were run behind a wrong token
    verify_s: float  #: spent on verification
    rescue_s: float  #: spent on taking wrong tokens back and reading the rows of rescues
    rolled_back_s: float  #: spent in steps that were rolled back

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self) | {"token_ids": list(self.token_ids)}


@dataclass(frozen=True)
class Score:
    """How likely the model, with its full head, finds a continuation. Tuples have one entry for each of its
    tokens.
    """

    token_ids: tuple[int, ...]  #: full ids
    log_probs: tuple[float, ...]  #: natural logarithms, each given all that is before the token
    greedy: tuple[bool, ...]  #: whether the token is what greedy decoding would choose there

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
    """A piece of a streamed answer. The last one has no token, perhaps some held-back text, and the
    result.
    """

    text: str
    token_id: int | None
    result: Generation | None = None
