"""Exact decoding beside the full head and the approximate one: same ids, tokens/s, misses, over five tasks.

    python -m benchmarks.exact --backend torch --model MODEL_DIR --data DATA_DIR --work DIR --rows 20 --out
    FILE.json

profiles each task's corpus with default options (once, kept in the work folder), then generates for the first
rows of its evaluation file: every prompt with the three variants in turn, all in one process. Exits with 1
when an exact id is not the full head's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.generation import TASKS, read_prompts
from benchmarks.runs import median
from vt_core import load
from vt_core.backend import BACKENDS
from vt_core.model import Model
from vt_core.task import TaskVocabulary

CORPORA = {
    "math": "math/gsm8k_profile.jsonl",
    "qa": "qa/squad_profile.jsonl",
    "summarization": "summarization/xsum_profile.jsonl",
    "code": "code/mbpp_profile.jsonl",
    "translation": "translation/en-it_wmt09_profile.jsonl",
}
SAMPLED = {"temperature": 0.8, "top_p": 0.95}


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Where task vocabularies are kept."
)
@click.option("--rows", default=8, show_default=True, help="Evaluation rows of each task.")
@click.option("--max-tokens", default=64, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, help="Sample with this seed too; repeatable.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    data: Path,
    work: Path,
    rows: int,
    max_tokens: int,
    seeds: tuple[int, ...],
    dtype: str,
    out: Path,
) -> None:
    full = load(model, backend=backend, head="full", dtype=dtype)
    reduced = load(model, backend=backend, dtype=dtype)
    report: dict[str, Any] = {"command": sys.argv, "model": model.name, "dtype": dtype, "tasks": {}}
    for task in TASKS:
        reduced.set_task(TaskVocabulary.load(task_vocabulary(backend, model, data, work, task)))
        entry = {"static_rows": reduced.decoder.head.vocabulary.static_size}
        prompts = read_prompts(model, data, rows)[task]
        for name, options in {"greedy": {}, **{f"seed {s}": SAMPLED | {"seed": s} for s in seeds}}.items():
            runs = [compare(full, reduced, prompt, max_tokens, options) for prompt in prompts]
            entry[name] = summarize(runs)
            click.echo(f"{task:14} {name:8} {json.dumps(entry[name])}")
        report["tasks"][task] = entry
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    if any(
        entry[name]["same"] < 1
        for entry in report["tasks"].values()
        for name in entry
        if name != "static_rows"
    ):
        sys.exit(1)


def task_vocabulary(backend: str, model: Path, data: Path, work: Path, task: str) -> Path:
    """The task vocabulary of a task's corpus, made by the command with default options."""
    out = work / f"{model.name}-{task}.vt.json"
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        code = f"from vt_core.cli import {backend}; {backend}()"
        arguments = ["profile", "--model", model, "--data", data / CORPORA[task], "--out", out]
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
        )
    return out


def compare(full: Model, reduced: Model, prompt: list[int], max_tokens: int, options: dict) -> dict[str, Any]:
    """One prompt with the three variants in turn."""
    variants = {
        "full": (full, {}),
        "exact": (reduced, {}),
        "approximate": (reduced, {"approximate": True}),
    }
    found: dict[str, Any] = {}
    for name, (model, extra) in variants.items():
        started = time.perf_counter()
        result = model.generate(prompt, max_tokens=max_tokens, **options, **extra)
        found[name] = {
            "ids": result.token_ids,
            "seconds": time.perf_counter() - started - (result.ttft_s or 0),
            "ttft_s": result.ttft_s,
            "tokens": result.generated_tokens - 1,
            "checks": [result.verifications, result.rescued, result.rolled_back, result.verify_s],
        }
    return found


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def speed(variant: str) -> float:
        return sum(run[variant]["tokens"] for run in runs) / sum(run[variant]["seconds"] for run in runs)

    tokens = sum(len(run["exact"]["ids"]) for run in runs)
    verifications, rescued, rolled_back, verify_s = (
        sum(run["exact"]["checks"][index] for run in runs) for index in range(4)
    )
    return {
        "prompts": len(runs),
        "tokens": tokens,
        "same": sum(run["exact"]["ids"] == run["full"]["ids"] for run in runs) / len(runs),
        "approximate_same": sum(run["approximate"]["ids"] == run["full"]["ids"] for run in runs) / len(runs),
        "full_tokens_per_s": round(speed("full"), 2),
        "to_full": round(speed("exact") / speed("full"), 3),
        "to_approximate": round(speed("exact") / speed("approximate"), 3),
        "approximate_to_full": round(speed("approximate") / speed("full"), 3),
        "ttft_to_full": round(median([run["exact"]["ttft_s"] / run["full"]["ttft_s"] for run in runs]), 3),
        "miss_rate": round(rescued / tokens, 4),
        "rescued": rescued,
        "rolled_back": rolled_back,
        "mean_block": round((tokens + rolled_back) / max(1, verifications), 2),
        "verify_s_each": round(verify_s / max(1, verifications), 4),
    }


if __name__ == "__main__":
    main()
