"""Quantizing while loading, in PyTorch: memory, speed, and agreement with the float model.

    python -m benchmarks.quantized_torch --model MODEL_DIR --data DATA_DIR --out FILE.json

Each way to hold the weights runs in a process of its own, all on the same prompts in turn. Time is the
processor's, of one thread, so that what else the machine does counts little. Agreement is the share of the
float model's tokens that a quantized one would have chosen after the same text. Exits with 1 where exact
decoding gives other ids than the same weights' full head.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.generation import read_prompts
from vt_core.measure.bench.machine import command_text, machine, versions

MODES = (None, "int8", "int4")


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--rows", default=1, show_default=True, help="Prompts of each task.")
@click.option("--most-prompt-tokens", default=200, show_default=True)
@click.option("--max-tokens", default=32, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    model: Path, data: Path, rows: int, most_prompt_tokens: int, max_tokens: int, dtype: str, out: Path
) -> None:
    tasks = read_prompts(model, data, rows, most_prompt_tokens)
    prompts = [ids for task in tasks.values() for ids in task]
    report: dict[str, Any] = {
        "command": command_text("benchmarks.quantized_torch", sys.argv[1:]),
        "machine": machine(),
        "versions": versions("torch"),
        "model": model.name,
        "dtype": dtype,
        "prompt_tokens": [len(ids) for ids in prompts],
        "modes": measure(model, dtype, prompts, max_tokens),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    for mode, found in report["modes"].items():
        click.echo(f"{mode}: {json.dumps(found)}")
    if not all(found["exact_is_full"] for found in report["modes"].values()):
        sys.exit(1)


def measure(model: Path, dtype: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """What each way gives, by its name; times and agreement relative to the floats."""
    workers = {str(mode or dtype): _start(model, dtype, mode) for mode in MODES}
    names = list(workers)
    loaded = {name: worker.recv() for name, worker in workers.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for prompt in prompts:
        text: list[int] | None = None  # of the floats, which come first
        for name, worker in workers.items():
            worker.send((prompt, text, max_tokens))
            runs[name].append(worker.recv())
            text = text or runs[name][-1]["ids"]
    for worker in workers.values():
        worker.send(None)
    floats = names[0]
    result = {}
    for name in names:
        agreed = [equal for run in runs[name] for equal in run["agreed"]]
        result[name] = loaded[name] | {
            "exact_is_full": all(run["exact_is_full"] for run in runs[name]),
            "rescued": sum(run["rescued"] for run in runs[name]),
            "agreement": None if name == floats else sum(agreed) / len(agreed),
            "tokens": sum(len(run["ids"]) for run in runs[name]),
        }
        for what in ("prefill_s", "full_s", "exact_s"):
            ratios = [
                ours[what] / theirs[what] for ours, theirs in zip(runs[name], runs[floats], strict=True)
            ]
            result[name][what.replace("_s", "_time_ratio")] = statistics.median(ratios)
    return result


def _start(model: Path, dtype: str, mode: str | None) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, model, dtype, mode), daemon=True).start()
    return ours


def _serve(connection: Connection, path: Path, dtype: str, mode: str | None) -> None:
    import torch

    import vt_torch  # noqa: F401  # so that what it needs is no part of the model's memory
    from vt_core import load
    from vt_core.decode.metrics import ProcessMemory

    torch.set_num_threads(1)
    memory = ProcessMemory()
    idle = memory.peak
    options = {"backend": "torch", "device": "cpu", "dtype": dtype, "quantize": mode}
    model = load(path, **options)
    loading = memory.peak
    model.generate([1, 2, 3], max_tokens=4)
    decoder: Any = model.decoder
    parts = (*decoder._model.parameters(), *decoder._model.buffers())
    connection.send(
        {
            "idle_mb": idle / 1e6,
            "peak_loading_mb": loading / 1e6,
            "peak_mb": memory.peak / 1e6,
            "body_mb": sum(part.nbytes for part in parts) / 1e6,
            "head_mb": decoder.head.nbytes / 1e6,
        }
    )
    full = load(path, head="full", **options)
    while (job := connection.recv()) is not None:
        prompt, text, max_tokens = job
        expected, prefill_s, full_s, _ = _timed(full, prompt, max_tokens)
        ids, _, exact_s, rescued = _timed(model, prompt, max_tokens)
        chosen = [] if text is None else _choices(model, prompt, text)
        connection.send(
            {
                "ids": ids,
                "exact_is_full": ids == expected,
                "rescued": rescued,
                "agreed": [mine == theirs for mine, theirs in zip(chosen, text or [], strict=True)],
                "prefill_s": prefill_s,
                "full_s": full_s,
                "exact_s": exact_s,
            }
        )


def _timed(model: Any, prompt: list[int], max_tokens: int) -> tuple[list[int], float, float, int]:
    """Ids, processor seconds to the first token and per token after it, and how many were rescued."""
    times, ids, result = [time.process_time()], [], None
    for chunk in model.stream(prompt, max_tokens=max_tokens):
        if chunk.token_id is not None:
            times.append(time.process_time())
            ids.append(chunk.token_id)
        result = chunk.result
    per_token = (times[-1] - times[1]) / max(1, len(times) - 2)
    return ids, times[1] - times[0], per_token, result.rescued


def _choices(model: Any, prompt: list[int], text: list[int]) -> list[int]:
    """The full head's choice at each position of a text that is given."""
    from vt_core.decode.sampling import Sampler, SamplerSettings
    from vt_core.decode.verification import Draft, verify

    decoder = model.decoder
    chosen: list[int] = []
    decoder.begin()
    try:
        for states in decoder.states(np.array([*prompt, *text[:-1]]), len(prompt) - 1):
            drafts = [Draft(position, (), None) for position in range(len(states))]
            sampler = Sampler(SamplerSettings(), model.rows)
            chosen += verify(lambda hidden=states: decoder._tiles(hidden), drafts, sampler)
    finally:
        decoder.end()
    return chosen


if __name__ == "__main__":
    main()
