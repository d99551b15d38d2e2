"""Reduced heads and exact decoding on real models: the ids of the stock framework?

    python -m benchmarks.generation --backend torch --model MODEL_DIR --data DATA_DIR --out FILE.json

takes the first row of an evaluation file of each of five tasks, generates greedily with every variant, each
in a process of its own, and prints what is equal and what is not. Exits with 1 when ids differ beyond
rounding. Speed and memory are what the command ``bench`` measures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks import stock
from vt_core.decode.backend import BACKENDS
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.bench.machine import command_text, machine, versions
from vt_core.measure.bench.processes import Worker
from vt_core.measure.bench.variants import parse_variant
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.tokenizer import Tokenizer

TASKS = {
    "math": ("math/gsm8k_eval.jsonl", "Solve step by step.\n\n{input}"),
    "qa": ("qa/squad_eval.jsonl", "{input}\nAnswer briefly."),
    "summarization": ("summarization/xsum_eval.jsonl", "{input}\n\nSummarize the article in one sentence."),
    "code": ("code/humaneval_eval.jsonl", "Complete this function.\n\n{input}"),
    "translation": ("translation/en-it_ntrex_eval.jsonl", "Translate into Italian: {input}"),
}
REDUCED = ("prealloc", "split", "rebuild")


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the five tasks."
)
@click.option("--most-prompt-tokens", type=int, help="Take the first row of a task that is no longer.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--max-tokens", default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    data: Path,
    most_prompt_tokens: int | None,
    dtype: str,
    max_tokens: int,
    out: Path,
) -> None:
    prompts = [
        ids for task in read_prompts(model, data, most_tokens=most_prompt_tokens).values() for ids in task
    ]
    report = {
        "command": command_text("benchmarks.generation", sys.argv[1:]),
        "machine": machine(),
        "versions": versions(backend),
        "model": model.name,
        "dtype": dtype,
        "prompt_tokens": [len(ids) for ids in prompts],
        "equal": Comparison(backend, model, dtype, prompts, max_tokens).equalities(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(summary(report))
    if not all(entry["ok"] for entry in report["equal"].values()):
        sys.exit(1)


def read_prompts(
    model: Path, data: Path, rows: int = 1, most_tokens: int | None = None
) -> dict[str, list[list[int]]]:
    """Full ids of the first prompts of each task, through the chat template where the model has one.

    With ``most_tokens`` longer prompts are passed over; where all are longer, the shortest are taken.
    """
    tokenizer = Tokenizer(ModelDirectory.open(model).path)
    prompts = {}
    for task, (file, template) in TASKS.items():
        with (data / file).open(encoding="utf-8") as lines:
            texts = [template.format(input=json.loads(line)["input"]) for line in lines]
        if most_tokens is None:
            texts = texts[:rows]
        if tokenizer.chat_template is None:
            encoded = [tokenizer.encode(text).tolist() for text in texts]
        else:
            encoded = [tokenizer.encode_chat([{"role": "user", "content": text}]).tolist() for text in texts]
        if most_tokens is not None:
            encoded = [ids for ids in encoded if len(ids) <= most_tokens] or sorted(encoded, key=len)
        prompts[task] = encoded[:rows]
    return prompts


class Comparison:
    """Variants of one model on the same prompts."""

    def __init__(
        self, backend: str, model: Path, dtype: str, prompts: Sequence[list[int]], max_tokens: int
    ) -> None:
        self.directory = ModelDirectory.open(model)
        self.copy = stock.export(model)
        self.backend, self.dtype, self.prompts, self.max_tokens = backend, dtype, prompts, max_tokens
        self._stock: Any = None

    def ids(self, name: str, static: Sequence[int] | None = None) -> list[list[int]]:
        """What a variant writes; ``static`` in place of the default vocabulary."""
        variant = parse_variant(name)
        job = {
            "name": name,
            "backend": self.backend,
            "model": str(self.directory.path),
            "stock": str(self.copy),
            "head": variant.head,
            "exact": variant.exact,
            "store": variant.store,
            "task": [],
            "device": None,
            "dtype": self.dtype,
        }
        with TemporaryDirectory() as scratch:
            if static is not None:
                manifest, ids = self.directory.manifest, np.array(static, np.int64)
                file = Path(scratch) / "static.vt.json"
                TaskVocabulary(
                    "static", manifest.tokenizer_digest, manifest.vocab_rows, ids, np.zeros_like(ids)
                ).save(file)
                job["task"] = [str(file)]
            with Worker(job) as worker:
                return [worker.request(prompt, self.max_tokens)["token_ids"] for prompt in self.prompts]

    def equalities(self) -> dict[str, Any]:
        """Which variants give which ids; each entry has ``ok`` and what was compared."""
        original, full = self.ids("stock"), self.ids("full")
        first, *others = (f"{head}-approximate" for head in REDUCED)
        reduced = self.ids(first)
        found = {"full = stock": self.compare(original, full)}
        found["exact = full, default vocabulary"] = {"ok": self.ids("prealloc") == full}
        for name in others:
            found[f"{name} = {first}, default vocabulary"] = {"ok": self.ids(name) == reduced}
        rows = self.directory.manifest.vocab_rows
        output = {token for ids in original for token in ids}
        prompt = {token for ids in self.prompts for token in ids}
        small = sorted(output.union(token for token in range(0, rows, 11) if token not in prompt))
        for name in (first, *others):
            entry = self.compare(original, self.ids(name, small))
            found[f"{name} = stock, small vocabulary"] = entry | {"active_share": len(small) / rows}
        whole = self.ids(first, range(rows))
        found[f"{first} = stock, whole vocabulary"] = self.compare(original, whole)
        return found

    def compare(self, original: list[list[int]], ids: list[list[int]]) -> dict[str, Any]:
        """Where ids differ, both logits of the stock framework, and how many units in the last place lie
        between them.
        """
        differences = []
        for prompt, expected, got in zip(self.prompts, original, ids, strict=True):
            pairs = enumerate(zip(expected, got, strict=False))
            at = next((index for index, pair in pairs if pair[0] != pair[1]), None)
            if at is None and len(expected) == len(got):
                continue
            at = min(len(expected), len(got)) - 1 if at is None else at
            self._stock = self._stock or stock.LOAD[self.backend](self.copy, self.dtype)
            logits = self._stock.next_logits([*prompt, *expected[:at]])
            pair = [float(logits[expected[at]]), float(logits[got[at]])]
            apart = ulps(*pair, self.dtype)
            differences.append(
                {"position": at, "ids": [expected[at], got[at]], "logits": pair, "ulps": apart}
            )
        ok = all(difference["ulps"] <= 1 for difference in differences)
        return {"ok": ok, "prompts": len(ids), "differences": differences}


def ulps(a: float, b: float, dtype: str) -> float:
    """Distance of two values in units in the last place of the larger, at a float type."""
    digits = {"float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    _, exponent = np.frexp(max(abs(a), abs(b)))
    return float(abs(a - b) / 2.0 ** (int(exponent) - 1 - digits))


def summary(report: dict[str, Any]) -> str:
    """The report as text: what is equal."""
    lines = [f"{report['model']} {report['dtype']}", ""]
    for name, entry in report["equal"].items():
        differences = entry.get("differences", [])
        verdict = "DIFFERS" if not entry["ok"] else "rounding" if differences else "equal"
        lines += [f"{verdict}: {name}", *(f"    {difference}" for difference in differences)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
