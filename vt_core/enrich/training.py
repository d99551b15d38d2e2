"""Fine-tuning: what a backend is asked to do, the examples it learns from, and what it gives back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vt_core.errors import DataError, OptionError
from vt_core.files.adapters import LowRank
from vt_core.profile.row_format import RowFormat
from vt_core.profile.rows import each_row
from vt_core.vocab.tokenizer import Tokenizer

#: A merged token in fewer outputs than this is hardly learned: docs/enrichment.md has models with many such.
RARE = 5

Floats = npt.NDArray[np.float32]

#: Learning rate of merged tokens' rows divided by that of the low-rank layers, if none is given. Rows start
#: as means and have more to learn: docs/enrichment.md has the losses with both rates.
ROWS_RATE = 10
#: Largest default of that rate divided by the root mean square of the rows. An update moves a value by about
#: the rate, and tables differ in scale: 0.13 in SmolLM2, 0.04 in Gemma 3 270M, 0.017 in Qwen2.5 0.5B.
ROWS_SHARE = 0.1


@dataclass(frozen=True)
class Example:
    """A prompt and its output as full ids. The loss is that of the output."""

    ids: list[int]
    prompt: int  #: how many of the ids are the prompt's


@dataclass(frozen=True)
class Settings:
    """How to train."""

    epochs: int = 3
    learning_rate: float = 2e-4  #: at the start; it falls to 0 in a line
    rows_learning_rate: float | None = None  #: that of merged tokens' rows; None: that of the layers
    rank: int = 16  #: of the low-rank layers
    alpha: int = 16  #: the low-rank layers are multiplied by `alpha / rank`
    dropout: float = 0.05  #: of the low-rank layers' input
    full: bool = False  #: train all weights instead of low-rank layers
    batch_size: int = 16  #: examples between two updates
    micro_batch: int = 4  #: examples that are computed at once
    evaluations: int = 1  #: evaluations, and checkpoints, of an epoch
    patience: int = 2  #: stop after so many evaluations without a smaller loss; 0 never stops
    seed: int = 0
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Raises OptionError."""
        if self.batch_size % self.micro_batch:
            raise OptionError(
                f"a batch of {self.batch_size} examples cannot be computed {self.micro_batch} at a time; "
                "give numbers of which the second divides the first"
            )

    @property
    def rows_rate(self) -> float:
        """Learning rate of merged tokens' rows at the start."""
        return self.learning_rate if self.rows_learning_rate is None else self.rows_learning_rate

    def for_rows(self, scale: float) -> Settings:
        """These settings with the default learning rate for merged tokens' rows.

        Args:
            scale: root mean square of the rows.
        """
        rate = min(ROWS_RATE * self.learning_rate, ROWS_SHARE * scale)
        return replace(self, rows_learning_rate=rate)

    def steps(self, examples: int) -> int:
        """Updates of an epoch."""
        return max(1, -(-examples // self.batch_size))

    def segment(self, examples: int) -> int:
        """Updates between two evaluations."""
        return max(1, -(-self.steps(examples) // self.evaluations))


@dataclass(frozen=True)
class TrainingPlan:
    """A whole training run."""

    model: Path  #: a plain Hugging Face directory
    tied: bool  #: whether embedding and head are one
    new_ids: tuple[int, ...]  #: merged tokens, whose rows are trained
    train: Sequence[Example]
    evaluation: Sequence[Example]  #: may be empty
    settings: Settings
    work: Path  #: for checkpoints; a run that finds some there goes on from the last


@dataclass(frozen=True)
class LossPoint:
    """A point of the loss curve: the loss of the last updates, or that of the evaluation split."""

    step: int  #: updates so far
    loss: float  #: nats per token of the outputs
    evaluation: bool


@dataclass(frozen=True)
class Trained:
    """What training changed."""

    adapter: Path | None  #: directory of the adapter, in the format of PEFT or mlx-lm; None for all weights
    layers: Sequence[LowRank] = ()
    #: trained rows of `embedding` and, if not tied, `head`: ``[new ids, hidden]``, in their order
    rows: dict[str, Floats] = field(default_factory=dict)
    #: a Hugging Face directory with all weights, where all were trained
    weights: Path | None = None
    curve: Sequence[LossPoint] = ()
    steps: int = 0
    stopped_early: bool = False


class FinetuneBackend(Protocol):
    """The module ``finetune`` of a backend."""

    def finetune(
        self,
        plan: TrainingPlan,
        on_step: Callable[[int], object],
        on_point: Callable[[LossPoint], object],
    ) -> Trained:
        """Train a model. Keeps the weights with the smallest loss on the evaluation split, if there is one.

        Args:
            on_step: called with the number of updates so far.
            on_point: called with each new point of the loss curve.

        Raises:
            BackendError: this backend or this machine cannot do what is asked.
        """


@dataclass(frozen=True)
class Examples:
    """The examples of corpus files."""

    kept: list[Example]
    too_long: int  #: examples that were left out


def read_examples(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    row_format: RowFormat,
    *,
    raw: bool,
    system: str | None = None,
    max_length: int,
) -> Examples:
    """Prompts and outputs of corpus files, outputs with merged tokens and the token that ends a text.

    Args:
        raw: give prompts as they are, without the chat template.
        system: system message.
        max_length: most ids of an example.

    Raises:
        DataError: a file or row cannot be used, or no example is left.
        PromptError: the model has no chat template, or it refuses a prompt.
    """
    end = end_id(tokenizer, raw)
    kept, too_long = [], 0
    for prompt, output in each_row(files, row_format.texts, row_format.columns):
        if not output:
            continue
        before = _prompt_ids(tokenizer, prompt, raw, system)
        ids = [*before, *tokenizer.encode_output(output), end]
        if len(ids) > max_length:
            too_long += 1
        elif before:
            kept.append(Example(ids, len(before)))
    if not kept:
        names = ", ".join(map(str, files))
        if not too_long:
            raise DataError(f"{names}: no row has a prompt and an output.")
        raise DataError(
            f"{names}: no example with a prompt and an output has at most {max_length} tokens; give a larger "
            "--max-length."
        )
    return Examples(kept, too_long)


def end_id(tokenizer: Tokenizer, raw: bool) -> int:
    """The id that ends an output: the one that the chat template puts after an answer, else EOS.

    Raises:
        OptionError: the tokenizer has none.
    """
    eos = tokenizer.eos_ids(1 << 30)
    if not raw:
        question = [{"role": "user", "content": "a"}]
        prompt = tokenizer.encode_chat(question)
        answered = [*question, {"role": "assistant", "content": "b"}]
        whole = tokenizer.encode_chat(answered, add_generation_prompt=False).tolist()
        if found := [id for id in whole[len(prompt) :] if id in eos]:
            return int(found[0])
    end = tokenizer.named_id("eos_token")
    if end is None:
        raise OptionError(
            f"{tokenizer.path}: no end-of-text token is named; name eos_token in tokenizer_config.json"
        )
    return end


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and evaluation examples; the second list holds about `share` of them, chosen at random."""
    held = round(len(examples) * share)
    if share and len(examples) > 1:
        held = min(max(1, held), len(examples) - 1)
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    chosen = set(order[:held])
    return (
        [example for at, example in enumerate(examples) if at not in chosen],
        [example for at, example in enumerate(examples) if at in chosen],
    )


def choose(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples, chosen at random, in their order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))
    return [examples[at] for at in chosen]


def rare_ids(examples: Sequence[Example], ids: Sequence[int]) -> list[int]:
    """Those of some ids that are in the outputs of fewer than `RARE` examples."""
    counts = Counter(id for example in examples for id in set(example.ids[example.prompt :]))
    return [id for id in ids if counts[id] < RARE]


def _prompt_ids(tokenizer: Tokenizer, prompt: str, raw: bool, system: str | None) -> list[int]:
    if raw:
        return tokenizer.encode(prompt).tolist()
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.encode_chat(messages).tolist()
