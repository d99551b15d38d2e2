"""Quantized weights beside the floats that they were made from: size, memory, speed, agreement, the same ids.

    vt-mlx convert SOURCE qwen-vt; vt-mlx convert SOURCE qwen-4bit --quantize 4
    python -m benchmarks.quantized --model qwen-vt --quantized qwen-4bit --data DATA_DIR --out FILE.json

takes short prompts of five tasks and generates greedily with each model, exactly, prompt by prompt in turn,
each model in a process of its own. Agreement is the share of the float model's tokens that the quantized one
would have chosen after the same tokens. Exits with 1 where a quantized model's ids are not those of the
stock framework on the same weights, but for rounding.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.generation import Comparison, read_prompts
from vt_core import load
from vt_core.decode.backend import BACKENDS
from vt_core.files.model_dir import ModelDirectory
from vt_core.measure.bench.machine import command_text, machine, versions
from vt_core.measure.bench.processes import Worker
from vt_core.measure.bench.variants import parse_variant, parse_variants


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="mlx", show_default=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="The model in floats."
)
@click.option(
    "--quantized",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    multiple=True,
    help="A model directory made of the same floats.",
)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the five tasks."
)
@click.option("--most-prompt-tokens", default=32, show_default=True)
@click.option("--prompts", default=5, show_default=True, help="How many.")
@click.option("--max-tokens", default=16, show_default=True)
@click.option(
    "--scoring",
    type=click.Choice(list(BACKENDS)),
    default="torch",
    show_default=True,
    help="The backend that measures agreement.",
)
@click.option("--variants", default="prealloc,prealloc-approximate", show_default=True)
@click.option("--no-stock", is_flag=True, help="Do not compare with the stock framework.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    quantized: tuple[Path, ...],
    data: Path,
    most_prompt_tokens: int,
    prompts: int,
    max_tokens: int,
    scoring: str,
    variants: str,
    no_stock: bool,
    out: Path,
) -> None:
    tasks = read_prompts(model, data, rows=-(-prompts // 5), most_tokens=most_prompt_tokens)
    chosen = sorted((ids for task in tasks.values() for ids in task), key=len)[:prompts]
    models = [model, *quantized]
    names = [variant.name for variant in parse_variants(variants)]
    exact = next((variant.name for variant in parse_variants(variants) if variant.exact), None)
    if exact is None:
        raise click.UsageError("--variants needs one that is exact: its texts are compared")
    runs = measure(backend, models, names, chosen, max_tokens)
    texts = [request["token_ids"] for request in runs[f"{model.name} {exact}"]["requests"]]
    report: dict[str, Any] = {
        "command": command_text("benchmarks.quantized", sys.argv[1:]),
        "machine": machine(),
        "versions": versions(backend),
        "prompt_tokens": [len(ids) for ids in chosen],
        "bytes": {path.name: ModelDirectory.open(path).manifest.total_bytes for path in models},
        "runs": runs,
        "agreement": {path.name: agreement(scoring, path, chosen, texts) for path in quantized},
        "equal": {},
    }
    for path in [] if no_stock else quantized:
        comparison = Comparison(backend, path, "float32", chosen, max_tokens)
        ids = [request["token_ids"] for request in runs[f"{path.name} {exact}"]["requests"]]
        report["equal"][path.name] = comparison.compare(comparison.ids("stock"), ids)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(summary(report, [path.name for path in models], names))
    if not all(entry["ok"] for entry in report["equal"].values()):
        sys.exit(1)


def measure(
    backend: str, models: list[Path], variants: list[str], prompts: list[list[int]], max_tokens: int
) -> dict[str, dict[str, Any]]:
    """Requests and memory of each model and variant, all of them asked in turn."""
    with ExitStack() as processes:
        workers = {
            f"{path.name} {name}": processes.enter_context(Worker(_job(backend, path, name)))
            for path in models
            for name in variants
        }
        requests: dict[str, list[Any]] = {name: [] for name in workers}
        for prompt in prompts:
            for name, worker in workers.items():
                requests[name].append(worker.request(prompt, max_tokens))
        return {
            name: {"requests": requests[name], "memory": worker.memory()} for name, worker in workers.items()
        }


def agreement(backend: str, path: Path, prompts: list[list[int]], texts: list[list[int]]) -> dict[str, Any]:
    """How many of the texts' tokens are the greedy choices of a model after the same tokens."""
    scores = load(path, backend=backend, device="cpu", dtype="float32").score_each(
        zip(prompts, texts, strict=True)
    )
    same = [flag for score in scores for flag in score.greedy]
    return {"tokens": len(same), "same": sum(same), "share": sum(same) / len(same)}


def summary(report: dict[str, Any], models: list[str], variants: list[str]) -> str:
    """The report as text: each model beside the first, the floats."""
    floats, lines = models[0], []
    for model in models:
        lines.append(f"{model}: {report['bytes'][model] / report['bytes'][floats]:.3f} x the size")
        for name in variants:
            run, other = (report["runs"][f"{which} {name}"] for which in (model, floats))
            memory, speed = (_peak(run) / _peak(other), _speed(run) / _speed(other))
            lines.append(f"  {name}: {memory:.2f} x the peak memory, {speed:.2f} x the tokens/s")
        if model in report["agreement"]:
            found = report["agreement"][model]
            lines.append(f"  agreement: {found['same']} of {found['tokens']} tokens, {found['share']:.1%}")
        if model in report["equal"]:
            found = report["equal"][model]
            verdict = "rounding" if found["differences"] else "equal"
            lines.append(f"  stock framework's ids: {verdict if found['ok'] else 'DIFFERENT'}")
    return "\n".join(lines)


def _peak(run: dict[str, Any]) -> int:
    memory = run["memory"]
    return memory["allocator_bytes"] or memory["peak_bytes"]


def _speed(run: dict[str, Any]) -> float:
    tokens = sum(len(request["token_ids"]) - 1 for request in run["requests"])
    return tokens / sum(request["decode_s"] for request in run["requests"])


def _job(backend: str, path: Path, name: str) -> dict[str, Any]:
    variant = parse_variant(name)
    return {
        "name": name,
        "backend": backend,
        "model": str(path),
        "stock": None,
        "head": variant.head,
        "exact": variant.exact,
        "store": variant.store,
        "task": [],
        "device": None,
        "dtype": "float32",
    }


if __name__ == "__main__":
    main()
