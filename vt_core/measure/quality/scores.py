"""Metrics of the tasks, in percent.

Each is a function of sums over examples, because a bootstrap needs the sums of many resamples.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

from vt_core.errors import OptionError
from vt_core.measure.quality.code import code_of
from vt_core.measure.quality.examples import Example

#: What each example adds to the sums of a metric, float64 ``[n, k]``.
Statistics = npt.NDArray[np.float64]


class Metric(ABC):
    """A score of a corpus."""

    #: Name in reports.
    name: str

    @abstractmethod
    def definition(self) -> str:
        """How the score is computed, for the report. Known after :meth:`statistics`."""

    @abstractmethod
    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> Statistics:
        """What each example adds to the sums, float64 ``[n, k]``."""

    @abstractmethod
    def score(self, sums: npt.NDArray[np.float64]) -> float:
        """The score in percent, from the sums ``[k]`` over some examples."""


class Mean(Metric):
    """Mean over examples of a share from 0 to 1."""

    def __init__(self, name: str, definition: str, share: Callable[[str, Example], float]) -> None:
        self.name, self._definition = name, definition
        self._share = share

    def definition(self) -> str:
        return self._definition

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> Statistics:
        shares = [self._share(answer, example) for answer, example in zip(answers, examples, strict=True)]
        return np.array([[share, 1.0] for share in shares]).reshape(-1, 2)

    def score(self, sums: npt.NDArray[np.float64]) -> float:
        return float(100 * sums[0] / sums[1])


class Sacre(Metric):
    """A corpus metric of sacrebleu."""

    def __init__(self, metric: Any, name: str) -> None:
        self._metric = metric
        self.name = name

    def definition(self) -> str:
        return f"sacreBLEU, {self._metric.get_signature()}"

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> Statistics:
        most = max(len(example.references) for example in examples)
        # One stream per reference. An example with fewer repeats its first, which changes no score.
        streams = [
            [e.references[i] if i < len(e.references) else e.references[0] for e in examples]
            for i in range(most)
        ]
        # Private methods, which sacrebleu's own significance tests use too.
        return np.array(self._metric._extract_corpus_statistics(list(answers), streams), np.float64)

    def score(self, sums: npt.NDArray[np.float64]) -> float:
        return float(self._metric._compute_score_from_stats(sums.tolist()).score)


def translation_metrics(tokenize: str | None, examples: Sequence[Example]) -> list[Metric]:
    """BLEU and chrF; ``tokenize`` is sacreBLEU's tokenizer, by default zh for Chinese references, or 13a."""
    from sacrebleu.metrics import BLEU, CHRF

    if tokenize is None:
        text = "".join(example.references[0] for example in examples)
        tokenize = "zh" if 2 * len(re.findall(r"[\u4e00-\u9fff]", text)) > len(text) else "13a"
    if tokenize not in BLEU.TOKENIZERS:
        raise OptionError(
            f"sacreBLEU has no tokenizer {tokenize!r}; it has {', '.join(sorted(BLEU.TOKENIZERS))}."
        )
    return [Sacre(BLEU(tokenize=tokenize), "BLEU"), Sacre(CHRF(), "chrF")]


def rouge_metrics() -> list[Metric]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, best over references."""
    from rouge_score.rouge_scorer import RougeScorer

    return [_rouge(RougeScorer([kind], use_stemmer=True), kind) for kind in ("rouge1", "rouge2", "rougeL")]


def _rouge(scorer: Any, kind: str) -> Mean:
    def share(answer: str, example: Example) -> float:
        return max(scorer.score(text, answer)[kind].fmeasure for text in example.references)

    return Mean(f"ROUGE-{kind[-1]}", "rouge-score, F-measure, with stemming", share)


_SQUAD = "SQuAD v1.1 (Rajpurkar et al., 2016): ignores case, punctuation and articles, best over references"
_PUNCTUATION = frozenset(string.punctuation)


def squad_words(text: str) -> list[str]:
    """Words of an answer, normalized as in SQuAD's evaluation."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(answer: str, example: Example) -> float:
    """Harmonic mean of precision and recall over words, best over references."""
    return max(_overlap(squad_words(answer), squad_words(text)) for text in example.references)


def _overlap(ours: list[str], theirs: list[str]) -> float:
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def squad_exact(answer: str, example: Example) -> float:
    """1 if the words are those of a reference, else 0."""
    return float(any(squad_words(answer) == squad_words(text) for text in example.references))


_NUMBER = re.compile(r"(?<![\d.,])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def final_number(text: str) -> Decimal | None:
    """The number after the last ``####``, else in the last ``\\boxed{}``, else the last number."""
    for mark in ("####", "\\boxed{"):
        _, found, after = text.rpartition(mark)
        if found and (number := _NUMBER.search(after)):
            return _decimal(number[0])
    numbers = _NUMBER.findall(text)
    return _decimal(numbers[-1]) if numbers else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def same_number(answer: str, example: Example) -> float:
    """1 if the final number is that of a reference, else 0."""
    expected = [final_number(text) for text in example.references]
    number = final_number(answer)
    return float(number is not None and number in expected)


def same_code(answer: str, example: Example) -> float:
    """1 if the code is that of a reference, but for trailing white space, else 0."""
    ours = _lines(code_of(answer))
    return float(any(ours == _lines(text) for text in example.references))


def _lines(code: str) -> list[str]:
    return [line.rstrip() for line in code.strip().splitlines()]


def metrics_of(preset: str, examples: Sequence[Example], tokenize: str | None = None) -> list[Metric]:
    """The metrics of a task; raises OptionError if a library is missing or a tokenizer unknown."""
    try:
        if preset == "translation":
            return translation_metrics(tokenize, examples)
        if preset == "summarization":
            return rouge_metrics()
    except ImportError as error:
        raise OptionError(
            f"The metrics of {preset} need the library {error.name}; install it with pip install 'vt[eval]'."
        ) from None
    if preset == "qa":
        return [Mean("F1", _SQUAD, squad_f1), Mean("EM", _SQUAD, squad_exact)]
    if preset == "math":
        return [Mean("accuracy", "the final number is the reference's", same_number)]
    if preset in ("intent", "sql"):
        from vt_core.measure.quality.structured import structured_metrics

        return structured_metrics(preset)
    exact = Mean("exact match", "the code is the reference's, line by line", same_code)
    if examples[0].tests is None:
        return [exact]
    from vt_core.measure.quality.sandbox import check_sandbox, passes

    check_sandbox()
    return [exact, Mean("pass@1", "the row's unit tests pass, one answer each", passes)]
