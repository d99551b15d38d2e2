"""Comparison of predictions, and the report of an evaluation."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from vt_core.errors import DataError
from vt_core.measure.eval_report import eval_report
from vt_core.measure.output import load_eval, write_eval
from vt_core.measure.quality.comparison import answered, compare
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions
from vt_core.measure.quality.scores import Mean
from vt_core.measure.report import markdown


def report(runs) -> str:
    return markdown(eval_report(runs))


def entry(name, title, kept, value, low, high, difference=None, **more):
    score = {"value": value, "low": low, "high": high, "difference": difference}
    return {
        "name": name,
        "title": title,
        "n": 25,
        "static_rows": 1200,
        "dynamic_rows": 14.4,
        "kept": kept,
        "same_text": 20,
        "finished": 24,
        "prompt_tokens": 80.2,
        "generated_tokens": 33.7,
        "metrics": {"F1": score},
    } | more


def results(**more):
    difference = {"value": -2.5, "low": -6.25, "high": 0.125}
    return {
        "format": "vt-eval/1",
        "command": "vt-torch eval --preset qa",
        "machine": {"processor": "P", "cores": 2, "memory_bytes": 2**34, "system": "Linux 6", "load": 0.5},
        "versions": {"vt": "0.1.0", "numpy": "2"},
        "model": "tiny (llama)",
        "vocab_rows": 10000,
        "task": "qa",
        "vocabulary": {"name": "qa", "ids": 1000, "source": [{"file": "train.jsonl", "rows": 2000}]},
        "pruning": {"corpus_ids": 3000, "kept_ids": 3456},
        "settings": {
            "data": [["test.jsonl", "00"]],
            "prompt": "{input}\nAnswer.",
            "max_tokens": 32,
            "backend": "torch",
            "device": "cpu",
            "dtype": "float32",
        },
        "sandbox": None,
        "n": 25,
        "left_out": 2,
        "minimum": 20,
        "confidence": 0.95,
        "resamples": 1000,
        "seed": 7,
        "metrics": {"F1": "SQuAD's"},
        "variants": [
            entry("original", "original", 1.0, 40.0, 30.0, 50.0, same_text=25),
            entry("approximate", "approximate", 0.12144, 37.5, 28.0, 48.0, difference),
        ],
    } | more


def lines(text):
    return text.splitlines()


def test_tables_and_facts():
    text = lines(report([results()]))
    assert "| task, model | metrics | original | approximate | n |" in text
    assert "| qa, tiny (llama) | F1 | 100.00 %: 40.00 | 12.14 %: 37.50 | 25 |" in text
    assert "| approximate | 1,200 | 14 | 12.14 % | 20 of 25 | 24 of 25 | 80 | 34 | 25 |" in text
    assert "| original | 100.00 % | 40.00 | 30.00 to 50.00 | – | – | 25 |" in text
    assert "| approximate | 12.14 % | 37.50 | 28.00 to 48.00 | -2.50 | -6.25 to +0.12 | 25 |" in text
    assert "- command: `vt-torch eval --preset qa`" in text
    whole = "\n".join(text)
    assert "25 of test.jsonl, the same for every variant; 2 left out" in whole
    assert "1,000 bootstrap resamples of the rows, seed 7" in whole
    assert "- task vocabulary: qa, 1,000 ids, from 2,000 rows of train.jsonl" in whole
    assert "3,456 ids: the 3,000 of the corpus's inputs and outputs" in whole
    assert "Few rows" not in whole and "sandbox" not in whole


def test_few_rows_show_intervals_and_one_warning():
    text = report([results(minimum=26)])
    assert "> **Few rows (25, fewer than 26): other rows may give quite different scores.**" in text
    assert text.count("Few rows") == 1
    assert "37.50 | 25, few |" in text
    assert "| approximate | 12.14 % | 37.50 | 28.00 to 48.00 | -2.50 | -6.25 to +0.12 | 25 |" in lines(text)


def test_evaluations_share_an_overview():
    other = results(task="math", sandbox=["files"], vocabulary=None, pruning=None)
    other["variants"] = [entry("exact", "exact", 0.2, 39.0, 31.0, 52.0, same_text=None)]
    text = report([results(), other])
    assert "| qa, tiny (llama) | F1 | 100.00 %: 40.00 | 12.14 %: 37.50 | – | 25 |" in text
    assert "| math, tiny (llama) | F1 | – | – | 20.00 %: 39.00 | 25 |" in text
    assert "unit tests ran in a sandbox: files" in text and "none: the rank prior" in text


def test_files_are_written_and_read_again(tmp_path):
    write_eval(results(), tmp_path, {"pruned-tokenizer.json": b"{}"})
    assert load_eval(tmp_path / "results.json") == results()
    assert (tmp_path / "report.md").read_text() == report([results()])
    assert (tmp_path / "pruned-tokenizer.json").read_bytes() == b"{}"


def test_comparison_gives_means_and_differences_to_the_original():
    rows = [Example(row, "", "", ("yes",)) for row in range(4)]
    metric = Mean("right", "", lambda answer, example: float(answer in example.references))

    def records(answers, **more):
        return [
            {
                "text": answer,
                "finish_reason": "stop" if answer else "length",
                "prompt_tokens": 10 + row,
                "generated_tokens": 2,
                "static_rows": 90,
                "learned_rows": row,
                "dynamic_rows": 8.5,
            }
            for row, answer in enumerate(answers)
        ]

    answers = {
        "original": records(["yes", "yes", "yes", "no"]),
        "exact": records(["yes", "yes", "", "no"]),
    }
    original, exact = compare([metric], rows, answers, vocab_rows=1000, seed=0)
    assert (original["kept"], original["static_rows"], original["same_text"]) == (1.0, 1000, 4)
    assert original["metrics"]["right"]["value"] == 75
    assert original["metrics"]["right"]["difference"] is None
    # 90 static rows, 8.5 of the request, and 0 to 3 learned ones.
    assert exact["kept"] == pytest.approx((90 + 8.5 + 1.5) / 1000) and exact["same_text"] == 3
    assert (exact["finished"], exact["prompt_tokens"]) == (3, 11.5)
    difference = exact["metrics"]["right"]["difference"]
    assert difference["value"] == -25 and -75 <= difference["low"] <= -25 <= difference["high"] == 0
    assert np.isfinite(difference["low"])


def test_rows_that_a_variant_refused_are_left_out_for_all(tmp_path):
    rows = [Example(row, "", "", ()) for row in range(2)]
    with closing(Predictions(tmp_path, {})) as predictions:
        for name in ("original", "exact"):
            predictions.add({"variant": name, "row": 0, "text": name})
        predictions.add({"variant": "original", "row": 1, "text": "x"})
        predictions.add({"variant": "exact", "row": 1, "refused": "the prompt is too long"})
        kept, records = answered(["original", "exact"], rows, predictions)
        assert kept == rows[:1] and records["exact"] == [predictions.get("exact", 0)]
        with pytest.raises(DataError, match="No row could be asked of every variant: the prompt is too long"):
            answered(["original", "exact"], rows[1:], predictions)
