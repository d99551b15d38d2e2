"""Exact decoding beside the full head and the approximate one: same ids, tokens/s, misses, over five tasks.

    python -m benchmarks.exact --backend torch --model MODEL_DIR --data DATA_DIR --work DIR --rows 20 --out
    FILE.json

profiles each task's corpus with default options (once, kept in the work folder), then generates for the first
rows of its evaluation file: every prompt with the three variants in turn, all in one process. At the end the
stock framework's model, driving the same sampler, says of every exact text whether it would have written it.
Exits with 1 when an exact id is not the full head's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks import stock
from benchmarks.decoder_memory import run
from benchmarks.generation import TASKS, read_prompts, ulps
from vt_core import load
from vt_core.decode.backend import BACKENDS
from vt_core.decode.sampling import Sampler, SamplerSettings, gumbel
from vt_core.measure.bench.machine import command_text, machine
from vt_core.model import Model
from vt_core.vocab.learning import Learned
from vt_core.vocab.static import static_ids
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import TokenTable

CORPORA = {
    "math": "math/gsm8k_profile.jsonl",
    "qa": "qa/squad_profile.jsonl",
    "summarization": "summarization/xsum_profile.jsonl",
    "code": "code/mbpp_profile.jsonl",
    "translation": "translation/en-it_wmt09_profile.jsonl",
}
#: Static sets that hardly hold what English mathematics needs.
HOSTILE = ("special ids only", "Chinese without prior")
CHINESE = ("translation/en-zh_wmt17-18-20_profile.jsonl", "--prior", "0")
SAMPLED = {"temperature": 0.8, "top_p": 0.95}
#: Scores closer than this differ by what a batch of positions rounds differently from single ones.
ROUNDING = 1e-3


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Where task vocabularies are kept.",
)
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Default: all.")
@click.option("--rows", default=8, show_default=True, help="Evaluation rows of each task.")
@click.option("--most-prompt-tokens", type=int, help="Take rows that are no longer.")
@click.option("--max-tokens", default=64, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, help="Sample with this seed too; repeatable.")
@click.option("--sampled-rows", default=2, show_default=True, help="Rows of each task for each seed.")
@click.option("--hostile-rows", default=0, show_default=True, help="Rows for each hostile static set.")
@click.option("--reference/--no-reference", default=True, help="Ask the stock framework's model too.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--traces", is_flag=True, help="Keep confidences and accepted lengths of all blocks.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    data: Path,
    work: Path,
    tasks: tuple[str, ...],
    rows: int,
    most_prompt_tokens: int | None,
    max_tokens: int,
    seeds: tuple[int, ...],
    sampled_rows: int,
    hostile_rows: int,
    reference: bool,
    dtype: str,
    traces: bool,
    out: Path,
) -> None:
    trio = Trio(backend, model, dtype, max_tokens)
    settings = {"greedy": {}, **{f"seed {seed}": SAMPLED | {"seed": seed} for seed in seeds}}
    prompts = read_prompts(model, data, max(rows, sampled_rows, hostile_rows), most_prompt_tokens)
    entries = []
    for task in tasks or TASKS:
        vocabulary = task_vocabulary(backend, model, data, work, task, CORPORA[task])
        for name, options in settings.items():
            trio.use(static_ids(trio.reduced.directory, trio.reduced.tokenizer, [vocabulary]))
            count = sampled_rows if options else rows
            entries.append(trio.run(task, name, prompts[task][:count], options))
    if hostile_rows:
        chinese = task_vocabulary(backend, model, data, work, "chinese", *CHINESE)
        for name, vocabularies in zip(HOSTILE, ([], [chinese]), strict=True):
            trio.use(always_active(trio.reduced), *(vocabulary.ids for vocabulary in vocabularies))
            entries.append(trio.run(f"math, {name}", "greedy", prompts["math"][:hostile_rows], {}))
    report = {
        "command": command_text("benchmarks.exact", sys.argv[1:]),
        "machine": machine(),
        "model": model.name,
        "dtype": dtype,
        "memory": memory(backend, model, dtype, prompts, max_tokens),
    }
    if reference:
        copy = stock.export(model)
        report["reference"] = check_with_stock(trio, stock.LOAD[backend](copy, dtype), entries)
        click.echo(f"reference {json.dumps(report['reference'])}")
    report["entries"] = [
        {key: value for key, value in entry.items() if key != "runs" or traces} for entry in entries
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    if any(entry["same"] < 1 for entry in entries):
        sys.exit(1)


class Trio:
    """The full head, and a reduced one used exactly and approximately, on the same prompts in turn."""

    def __init__(self, backend: str, model: Path, dtype: str, max_tokens: int) -> None:
        self.backend = backend
        self.max_tokens = max_tokens
        self.full = load(model, backend=backend, head="full", dtype=dtype)
        self.reduced = load(model, backend=backend, dtype=dtype)
        self._blocks: list[tuple[list[float], int]] = []
        learn = self.reduced._policy.learn

        def listen(confidences: list[float], accepted: int) -> None:
            self._blocks.append((list(confidences), accepted))
            learn(confidences, accepted)

        self.reduced._policy.learn = listen  # type: ignore[method-assign]

    def use(self, *ids: np.ndarray) -> None:
        """A new static set; what was learned is forgotten."""
        self.reduced._learned = Learned()
        head = self.reduced.decoder.head
        head.set_learned([])
        head.set_static(np.unique(np.concatenate(ids)))

    def run(self, task: str, sampling: str, prompts: list[list[int]], options: dict) -> dict[str, Any]:
        static = self.reduced.decoder.head.vocabulary.static_size
        runs = [self._compare(prompt, options) for prompt in prompts]
        entry = {"task": task, "sampling": sampling, "static_rows": static, **summarize(runs)}
        click.echo(json.dumps(entry))
        return entry | {"options": options, "runs": runs}

    def _compare(self, prompt: list[int], options: dict) -> dict[str, Any]:
        variants: dict[str, tuple[Model, dict]] = {"full": (self.full, {}), "exact": (self.reduced, {})}
        if not options:
            variants["approximate"] = (self.reduced, {"approximate": True})
        found: dict[str, Any] = {"prompt": prompt}
        for name, (model, extra) in variants.items():
            self._blocks.clear()
            started = time.perf_counter()
            result = model.generate(prompt, max_tokens=self.max_tokens, **options, **extra)
            found[name] = {
                "ids": result.token_ids,
                "seconds": time.perf_counter() - started - (result.ttft_s or 0),
                "ttft_s": result.ttft_s,
                "tokens": result.generated_tokens - 1,
                "verifications": result.verifications,
                "rescued": result.rescued,
                "rolled_back": result.rolled_back,
                "verify_s": result.verify_s,
                "blocks": list(self._blocks),
            }
        return found


def always_active(model: Model) -> np.ndarray:
    """Special and EOS ids."""
    table = TokenTable.load(model.directory.path / "tokenizer.json")
    return np.array(sorted({*table.special_ids(model.rows), *model.eos_ids}))


def task_vocabulary(
    backend: str, model: Path, data: Path, work: Path, name: str, corpus: str, *options: str
) -> TaskVocabulary:
    """The task vocabulary of a corpus, made by the command with default options and those given."""
    out = work / f"{model.name}-{name}.vt.json"
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        code = f"from vt_core.cli import {backend}; {backend}()"
        arguments = ["profile", "--model", model, "--data", data / corpus, "--out", out, *options]
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
        )
    return TaskVocabulary.load(out)


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def total(variant: str, field: str) -> float:
        return sum(run[variant][field] for run in runs)

    def speed(variant: str) -> float:
        return total(variant, "tokens") / total(variant, "seconds")

    def same(variant: str) -> float:
        return sum(run[variant]["ids"] == run["full"]["ids"] for run in runs) / len(runs)

    tokens = sum(len(run["exact"]["ids"]) for run in runs)
    verifications = total("exact", "verifications")
    approximate = {}
    if "approximate" in runs[0]:
        approximate = {
            "approximate_same": round(same("approximate"), 3),
            "approximate_to_full": round(speed("approximate") / speed("full"), 3),
            "to_approximate": round(speed("exact") / speed("approximate"), 3),
        }
    return {
        "prompts": len(runs),
        "tokens": tokens,
        "same": same("exact"),
        "full_tokens_per_s": round(speed("full"), 2),
        "tokens_per_s": round(speed("exact"), 2),
        "to_full": round(speed("exact") / speed("full"), 3),
        **approximate,
        "ttft_to_full": round(median([run["exact"]["ttft_s"] / run["full"]["ttft_s"] for run in runs]), 3),
        "miss_rate": round(total("exact", "rescued") / tokens, 4),
        "rescued": total("exact", "rescued"),
        "rolled_back": total("exact", "rolled_back"),
        "mean_block": round((tokens + total("exact", "rolled_back")) / max(1, verifications), 2),
        "largest_block": max(len(block[0]) for run in runs for block in run["exact"]["blocks"]),
        "verify_s_each": round(total("exact", "verify_s") / max(1, verifications), 4),
        "verify_share": round(total("exact", "verify_s") / total("exact", "seconds"), 3),
    }


def check_with_stock(trio: Trio, model: Any, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the stock framework's model, its logits given to the sampler, would choose every exact id."""
    positions, differences = 0, []
    for entry in entries:
        settings = SamplerSettings(**entry["options"])
        for prompt, ids in ((each["prompt"], each["exact"]["ids"]) for each in entry["runs"]):
            logits = stock.text_logits(trio.backend, model, prompt, ids)
            positions += len(ids)
            where = {"task": entry["task"], "sampling": entry["sampling"]}
            differences += [
                where | found
                for found in _disagreements(settings, prompt, ids, logits, trio.full.decoder.dtype)
            ]
    unexplained = [difference for difference in differences if difference["apart"] > ROUNDING]
    return {"positions": positions, "unexplained": len(unexplained), "differences": differences}


def _disagreements(
    settings: SamplerSettings, prompt: list[int], ids: tuple[int, ...], logits: np.ndarray, dtype: str
) -> Iterator[dict[str, Any]]:
    every = np.arange(logits.shape[1])
    sampler = Sampler(settings, len(every))
    sampler.extend(np.array(prompt))
    for position, token in enumerate(ids):
        choice = sampler.choose(logits[position], every, position)
        if choice != token:
            pair = np.array([choice, token])
            two = logits[position][pair].astype(np.float64)
            scores = two.copy()
            if settings.temperature:
                scores = two / settings.temperature + gumbel(settings.seed, position, pair)
            yield {
                "position": position,
                "ids": pair.tolist(),
                "logits": two.tolist(),
                "ulps": ulps(float(two[0]), float(two[1]), dtype),
                "apart": float(abs(scores[0] - scores[1])),
            }
        sampler.extend(np.array([token]))


def memory(
    backend: str, model: Path, dtype: str, prompts: dict[str, list[list[int]]], max_tokens: int
) -> dict[str, Any]:
    """Peak of decoding, above the imports, in a fresh process that holds a decoder and nothing else, beside
    the bytes that must be there.
    """
    job = {
        "backend": backend,
        "model": str(model),
        "prompts": [task[0] for task in prompts.values()],
        "max_tokens": max_tokens,
        "dtype": dtype,
        "static": list(range(8192)),
    }
    found = run(job)
    need = sum(found["parts"].values())
    loading = found["loading_peak_bytes"] - found["idle_bytes"]
    measured = found["allocator_bytes"] or found["peak_bytes"] - found["idle_bytes"]
    result = {
        "parts": found["parts"],
        "need": need,
        "measured": measured,
        "ratio": round(measured / need, 3),
        "while_loading": loading,
    }
    click.echo(f"memory {json.dumps(result)}")
    return result


if __name__ == "__main__":
    main()
