"""Float and quantized weights on PyTorch, side by side: speed, time to first token, memory, and texts.

    python -m benchmarks.quantized_torch --model PLAIN_DIR --data PROMPTS.jsonl --out FILE.json
    python -m benchmarks.quantized_torch --report FILE.json ...

Each format runs in processes of its own: the stock framework (floats only), and vt with a reduced head,
approximate and exact. All of them take each prompt in turn. On a machine that others use as well, the
processor's time says more than the clock; both are written down.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from converters.cache import open_model
from vt_core.files.json_files import write_json
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.benchmark import WARM_UP_TOKENS, model_name
from vt_core.measure.job import Job
from vt_core.measure.machine import machine, machine_text
from vt_core.measure.prompts import read_prompts
from vt_core.measure.variants import parse_variant
from vt_core.measure.worker import Worker
from vt_core.profile import make_row_format
from vt_core.vocab.tokenizer import Tokenizer

FORMATS = ("float32", "bfloat16", "int8", "int4")
VARIANTS = ("stock", "prealloc-approximate", "prealloc")
NAMES = {"stock": "stock", "prealloc-approximate": "approximate", "prealloc": "exact"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a plain Hugging Face directory")
    parser.add_argument("--data", type=Path, help='JSON lines with "input"')
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print the table of results")
    arguments = parser.parse_args()
    if arguments.report is None:
        for results in measure(arguments):
            write_json(arguments.out, results)
    for file in arguments.report or [arguments.out]:
        print(report(json.loads(file.read_text(encoding="utf-8"))))


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run all formats on each prompt in turn. Yields the results so far."""
    directory = open_model(arguments.model)
    prompts = read_prompts(
        [arguments.data],
        make_row_format(),
        Tokenizer(directory.path),
        limit=arguments.limit,
        max_tokens=None,
    )
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        workers = {}
        for form in arguments.formats:
            for name in VARIANTS:
                if name == "stock" and form.startswith("int"):
                    continue
                worker = stack.enter_context(Worker(job(directory, arguments.model, form, name)))
                worker.warm_up(prompts.warm_up, max_tokens=WARM_UP_TOKENS)
                workers[f"{form} {NAMES[name]}"] = worker
        for done, prompt in enumerate(prompts.ids, 1):
            for key, worker in workers.items():
                before = worker.usage()["cpu_s"]
                found = worker.generate(prompt, max_tokens=arguments.max_tokens)
                row = rows.setdefault(
                    key, {"ids": [], "ttft_s": [], "decode_s": [], "cpu_s": [], "verified": 0}
                )
                row["ids"].append(found["token_ids"])
                row["ttft_s"].append(round(found["ttft_s"], 5))
                row["decode_s"].append(round(found["decode_s"], 5))
                row["cpu_s"].append(round(worker.usage()["cpu_s"] - before, 5))
                row["verified"] += found.get("verifications", 0)
            for key, worker in workers.items():
                rows[key] |= {"memory": worker.memory(), "load_s": round(worker.about["load_s"], 2)}
            yield {
                "model": model_name(directory),
                "machine": machine_text(machine()),
                "load_average": os.getloadavg()[0],
                "prompts": done,
                "max_tokens": arguments.max_tokens,
                "rows": rows,
            }


def job(directory: ModelDirectory, plain: Path, form: str, variant: str) -> Job:
    """The process of one format and variant."""
    how = {"quantize": form} if form.startswith("int") else {"dtype": form}
    return Job.of(
        parse_variant(variant),
        backend="torch",
        model=str(directory.path),
        stock=str(plain) if variant == "stock" else None,
        device="cpu",
        **how,
    )


def report(results: dict[str, Any]) -> str:
    """A Markdown table. Texts are compared with the stock framework's in the format's float type, those of
    integers with its widest.
    """
    rows = results["rows"]
    base = next(key for key in rows if key.endswith("exact"))
    lines = [
        f"{results['model']}, {results['prompts']} prompts, {results['max_tokens']} tokens.",
        f"{results['machine']}; load average {results['load_average']:.1f}.",
        "",
        f"| weights | run | tokens/s | tokens per CPU second | of {base} | of its approximate "
        "| first token, ms | peak, MB | same tokens as float |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key, row in rows.items():
        form, name = key.split()
        reference = rows.get(f"{form} stock") or rows.get("float32 stock") or rows.get("bfloat16 stock")
        lines.append(
            f"| {form} | {name} | {_rate(row, 'decode_s', first=1):.1f} | {_rate(row, 'cpu_s'):.1f} "
            f"| {_ratio(row, rows[base])} | {_ratio(row, rows.get(f'{form} approximate'))} "
            f"| {1000 * median(row['ttft_s']):.0f} | {row['memory']['peak_bytes'] / 1e6:.0f} "
            f"| {_agreement(row, reference)} |"
        )
    return "\n".join(lines)


def _rate(row: dict[str, Any], seconds: str, first: int = 0) -> float:
    """Tokens per second; the processor's time includes the prompt."""
    return sum(len(ids) - first for ids in row["ids"]) / sum(row[seconds])


def _ratio(row: dict[str, Any], other: dict[str, Any] | None) -> str:
    return "–" if other is None else f"{_rate(row, 'cpu_s') / _rate(other, 'cpu_s'):.2f} ×"


def _agreement(row: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """Share of the tokens before the first difference, and equal texts."""
    if reference is None or reference is row:
        return "–"
    pairs = list(zip(row["ids"], reference["ids"], strict=True))
    same = sum(
        next((at for at, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(expected))
        for ids, expected in pairs
    )
    texts = sum(ids == expected for ids, expected in pairs)
    return f"{same / sum(len(expected) for _, expected in pairs):.0%}, {texts} of {len(pairs)} texts"


if __name__ == "__main__":
    main()
