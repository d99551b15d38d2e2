"""Metrics against values computed by hand."""

from __future__ import annotations

import sys
from decimal import Decimal
from math import exp

import numpy as np
import pytest

from vt_core.errors import OptionError
from vt_core.measure.quality.code import code_of, program_of
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.scores import final_number, metrics_of, squad_words


def examples(*references: str | tuple[str, ...], **fields) -> list[Example]:
    return [
        Example(row, "prompt", "input", (text,) if isinstance(text, str) else text, **fields)
        for row, text in enumerate(references)
    ]


def scores(preset: str, answers: list[str], rows: list[Example], **options) -> dict[str, float]:
    metrics = metrics_of(preset, rows, **options)
    return {metric.name: metric.score(metric.statistics(answers, rows).sum(axis=0)) for metric in metrics}


def test_bleu_follows_from_its_precisions():
    # Precisions 5/6, 3/5, 1/4 and 0/3, which smoothing makes 1/6; as long as the reference, so no penalty.
    got = scores(
        "translation", ["the cat sat on the mat"], examples("the cat sat near the mat"), tokenize="13a"
    )
    by_hand = 100 * (5 / 6 * 3 / 5 * 1 / 4 * (0.5 / 3)) ** 0.25
    assert got["BLEU"] == pytest.approx(by_hand, abs=1e-3)
    short = scores("translation", ["a b c d e"], examples("a b c d e f g h i j"))
    assert short["BLEU"] == pytest.approx(100 * exp(1 - 10 / 5), abs=1e-3)


def test_sums_over_examples_give_the_corpus_scores_of_sacrebleu():
    from sacrebleu.metrics import BLEU, CHRF

    answers = ["il gatto è nero", "la casa grande", "oggi piove molto a Roma"]
    references = ["il gatto nero dorme", "una grande casa", "oggi piove molto a Milano"]
    got = scores("translation", answers, examples(*references))
    assert got["BLEU"] == pytest.approx(BLEU().corpus_score(answers, [references]).score)
    assert got["chrF"] == pytest.approx(CHRF().corpus_score(answers, [references]).score)
    several = examples(("a b c d", "e f g h"), "e f g h")
    streams = [["a b c d", "e f g h"], ["e f g h", "e f g h"]]
    assert scores("translation", ["e f g h"] * 2, several)["BLEU"] == pytest.approx(
        BLEU().corpus_score(["e f g h"] * 2, streams).score
    )


def test_chinese_references_are_split_into_characters():
    rows = examples("今天天气很好")
    assert scores("translation", ["今天天气很好"], rows)["BLEU"] == pytest.approx(100)
    assert scores("translation", ["今天天气不好"], rows)["BLEU"] > 20
    assert scores("translation", ["今天天气不好"], rows, tokenize="13a")["BLEU"] == 0
    with pytest.raises(OptionError, match="no tokenizer 'swahili'"):
        metrics_of("translation", rows, "swahili")


def test_rouge_counts_stems_bigrams_and_longest_common_sequence():
    got = scores("summarization", ["police killed the gunman"], examples("the gunman police killed"))
    # All words are common, two of three bigrams ("police killed", "the gunman"), and a sequence of two words.
    assert got == pytest.approx({"ROUGE-1": 100, "ROUGE-2": 200 / 3, "ROUGE-L": 50})
    assert scores("summarization", ["gas"], examples("ga"))["ROUGE-1"] == 0  # three letters are not stemmed
    assert scores("summarization", ["tigers"], examples("tiger"))["ROUGE-1"] == 100


def test_squad_ignores_case_punctuation_and_articles():
    assert squad_words("The  U.S. Army's, an answer") == ["us", "armys", "answer"]
    rows = examples("tuition fees", ("Denver Broncos", "The Broncos"), "1990")
    got = scores("qa", ["They are funded by tuition fees.", "the broncos!", "in 1991"], rows)
    # F1: two of six words and two of two, 2*2/8; the second reference; nothing.
    assert got == pytest.approx({"F1": 100 * (0.5 + 1 + 0) / 3, "EM": 100 / 3})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7 apples", "7"),
        ("it costs $1,234.50.", "1234.50"),
        ("5 apples\n#### 12\nCheck: 13", "12"),
        ("\\boxed{42} for 3 people", "42"),
        ("from 10-5", "5"),
        ("the answer is -5", "-5"),
        ("#### none, but 8 before", "8"),
        ("none", None),
        ("18.00", "18"),
        ("half is .5", "0.5"),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_accuracy_compares_numbers():
    rows = examples("<<1+1=2>>\n#### 1,200", "#### 3", "#### 4", "#### 5")
    assert scores("math", ["That is $1200.00", "3", "5", "who knows"], rows) == {"accuracy": 50}


def test_code_is_compared_line_by_line_without_fence():
    rows = examples("    return a + b\n", "x = 1")
    answers = ["Here:\n```python\nreturn a + b   \n```\nDone.", "x = 2"]
    assert scores("code", answers, rows) == {"exact match": 50}
    assert code_of("```py\na\n```\n```\nb\n```") == "a\n"
    assert code_of("``` \nunfinished") == "unfinished"
    assert code_of("plain") == "plain"


def test_program_joins_input_answer_and_tests():
    example = Example(0, "p", "import math\n\ndef f(x):\n    '''f'''\n", ("",), "assert f(1) == 2")
    whole = program_of("```python\ndef f(x):\n    return x + math.floor(1)\n```", example)
    body = program_of("    return x + 1", example)
    for program in (whole, body):
        exec(compile(program, "program", "exec"), {})
    described = Example(0, "p", "Write a function f that adds 1.", ("",), "assert f(1) == 2")
    for answer in ("def f(x):\n    return x + 1", "```\nf = lambda x: x + 1\n```"):
        exec(compile(program_of(answer, described), "program", "exec"), {})
    assert program_of("(" * 10000, described).startswith("(((")  # too deep for the parser
    with pytest.raises(AssertionError):
        exec(compile(program_of("    return x", example), "program", "exec"), {})


def test_unit_tests_are_a_metric():
    rows = [Example(0, "p", "def f(x):\n", ("",), "assert f(1) == 2")] * 2
    assert scores("code", ["    return 2", "    return 3"], rows) == {"exact match": 0, "pass@1": 50}


def test_missing_libraries_are_named(monkeypatch):
    for preset, library, module in (
        ("translation", "sacrebleu", "sacrebleu.metrics"),
        ("summarization", "rouge_score", "rouge_score.rouge_scorer"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            patch.delitem(sys.modules, module, raising=False)
            with pytest.raises(OptionError, match=rf"{library}.*; install it with pip install 'vt\[eval\]'"):
                metrics_of(preset, examples("a"))


def test_statistics_have_one_row_per_example():
    rows = examples("a b", "c d", "e f")
    for preset in ("translation", "summarization", "qa", "math", "code"):
        for metric in metrics_of(preset, rows):
            found = metric.statistics(["a", "", "f e"], rows)
            assert found.shape[0] == 3 and found.dtype == np.float64
            assert 0 <= metric.score(found.sum(axis=0)) <= 100
