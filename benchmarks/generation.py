"""Reduced heads, approximate and exact, against the stock framework: ids, memory, speed, time to the first
token.

    python -m benchmarks.generation --backend torch --model MODEL_DIR --data DATA_DIR --work DIR --out
    FILE.json

takes the first row of an evaluation file of each of five tasks, generates greedily with every variant, each
in a process of its own, and prints what is equal and what is not. Exits with 1 when ids differ beyond
rounding.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import stock
from benchmarks.runs import median, run
from vt_core.backend import BACKENDS
from vt_core.model_dir import ModelDirectory
from vt_core.tokenizer import Tokenizer

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
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the stock framework's copy is written.",
)
@click.option("--most-prompt-tokens", type=int, help="Take the first row of a task that is no longer.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--max-tokens", default=32, show_default=True)
@click.option("--repeat", default=3, show_default=True, help="Timed rounds over the variants.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    data: Path,
    work: Path,
    most_prompt_tokens: int | None,
    dtype: str,
    max_tokens: int,
    repeat: int,
    out: Path,
) -> None:
    prompts = [
        ids for task in read_prompts(model, data, most_tokens=most_prompt_tokens).values() for ids in task
    ]
    job = {
        "backend": backend,
        "model": str(model),
        "stock": str(stock.export(model, work / f"{model.name}-stock")),
        "prompts": prompts,
        "max_tokens": max_tokens,
        "dtype": dtype,
        "static": None,
    }
    rounds = [
        {variant: run(job | {"variant": variant}) for variant in ("stock", "full", *REDUCED, "exact")}
        for _ in range(repeat)
    ]
    report = {
        "command": sys.argv,
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip(),
        "versions": {
            name: version(name) for name in ("transformers", "torch", "mlx", "mlx-lm", "numpy", "lmdb")
        },
        "model": model.name,
        "dtype": dtype,
        "prompt_tokens": [len(ids) for ids in prompts],
        "rounds": rounds,
        "equal": equalities(job, rounds[0], ModelDirectory.open(model).manifest.vocab_rows),
        "ratios": ratios(rounds),
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


def equalities(job: dict[str, Any], measured: dict[str, Any], rows: int) -> dict[str, Any]:
    """Which variants give which ids; each entry has ``ok`` and what was compared."""
    original = measured["stock"]["ids"]
    output = sorted({token for ids in original for token in ids})
    prompt = {token for ids in job["prompts"] for token in ids}
    found = {"full = stock": compare(job, original, measured["full"]["ids"])}
    found["exact = full, default vocabulary"] = {"ok": measured["exact"]["ids"] == measured["full"]["ids"]}
    for head in REDUCED[1:]:
        same = measured[head]["ids"] == measured[REDUCED[0]]["ids"]
        found[f"{head} = {REDUCED[0]}, default vocabulary"] = {"ok": same}
    filler = [token for token in range(0, rows, 11) if token not in prompt]
    small = sorted({*output, *filler})
    for head in REDUCED:
        for name, static in (("small", small), ("whole", list(range(rows)))):
            if name == "whole" and head != REDUCED[0]:
                continue
            ids = run(job | {"variant": head, "static": static})["ids"]
            entry = compare(job, original, ids)
            found[f"{head} = stock, {name} vocabulary"] = entry | {"active_share": len(static) / rows}
    return found


def compare(job: dict[str, Any], original: list[list[int]], ids: list[list[int]]) -> dict[str, Any]:
    """Where ids differ, both logits of the stock framework, and how many units in the last place lie between
    them.
    """
    differences = []
    model = None
    for prompt, expected, got in zip(job["prompts"], original, ids, strict=True):
        at = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), None)
        if at is None and len(expected) == len(got):
            continue
        at = min(len(expected), len(got)) - 1 if at is None else at
        model = model or stock.LOAD[job["backend"]](job["stock"], job["dtype"])
        logits = stock.next_logits(job["backend"], model, [*prompt, *expected[:at]])
        pair = [float(logits[expected[at]]), float(logits[got[at]])]
        differences.append(
            {
                "position": at,
                "ids": [expected[at], got[at]],
                "logits": pair,
                "ulps": ulps(*pair, job["dtype"]),
            }
        )
    return {"ok": all(d["ulps"] <= 1 for d in differences), "prompts": len(ids), "differences": differences}


def ulps(a: float, b: float, dtype: str) -> float:
    """Distance of two values in units in the last place of the larger, at a float type."""
    digits = {"float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    _, exponent = np.frexp(max(abs(a), abs(b)))
    return float(abs(a - b) / 2.0 ** (int(exponent) - 1 - digits))


def ratios(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Every variant to stock, the median of the rounds; ``ttft`` of the second and later requests, to
    ``full``.
    """

    def speed(result: dict[str, Any]) -> float:
        return median(result["tokens_per_s"])

    def later(result: dict[str, Any]) -> float:
        return sum(result["ttft_s"][1:])

    found: dict[str, dict[str, float]] = {}
    for variant in rounds[0]:
        pairs = [(each[variant], each["stock"], each["full"]) for each in rounds]
        entry = {
            "tokens_per_s": median([speed(own) / speed(base) for own, base, _ in pairs]),
            "peak": median([own["peak_bytes"] / base["peak_bytes"] for own, base, _ in pairs]),
            "peak_above_idle": median(
                [
                    (own["peak_bytes"] - own["idle_bytes"]) / (base["peak_bytes"] - base["idle_bytes"])
                    for own, base, _ in pairs
                ]
            ),
            "ttft_to_full": median([later(own) / later(full) for own, _, full in pairs]),
        }
        if rounds[0][variant]["allocator_bytes"]:
            entry["allocator"] = median(
                [own["allocator_bytes"] / base["allocator_bytes"] for own, base, _ in pairs]
            )
        found[variant] = entry
    return found


COLUMNS = "variant|tokens/s|to stock|peak MB|to stock|above idle|allocator MB|to stock|TTFT to full"


def summary(report: dict[str, Any]) -> str:
    """The report as text: what is equal, and a table in Markdown."""
    lines = [f"{report['model']} {report['dtype']}", ""]
    for name, entry in report["equal"].items():
        differences = entry.get("differences", [])
        verdict = "DIFFERS" if not entry["ok"] else "rounding" if differences else "equal"
        lines += [f"{verdict}: {name}", *(f"    {difference}" for difference in differences)]
    columns = COLUMNS.split("|")
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for variant, ratio in report["ratios"].items():
        own = report["rounds"][0][variant]
        allocator = ("–", "–")
        if "allocator" in ratio:
            allocator = (f"{own['allocator_bytes'] / 1e6:.0f}", f"{ratio['allocator']:.2f}")
        cells = [
            variant,
            f"{median(own['tokens_per_s']):.1f}",
            f"{ratio['tokens_per_s']:.2f}",
            f"{own['peak_bytes'] / 1e6:.0f}",
            f"{ratio['peak']:.2f}",
            f"{ratio['peak_above_idle']:.2f}",
            *allocator,
            f"{ratio['ttft_to_full']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
