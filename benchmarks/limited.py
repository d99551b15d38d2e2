"""Exact decoding and the stock framework in little memory, page cache included: tokens/s, and the same text.

    python -m benchmarks.limited --backend torch --model MODEL_DIR --data FILE.jsonl --limit-mb 900
    --out FILE.json

runs each variant without a limit and under each, in a process of its own in a memory control group, from a
cold page cache. Linux, as root. Exits with 1 when the texts differ.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import stock
from vt_core.decode.backend import BACKENDS
from vt_core.errors import BackendError
from vt_core.measure.bench.limits import control_group, drop_caches
from vt_core.measure.bench.processes import Worker
from vt_core.measure.bench.prompts import Prompts, read_prompts
from vt_core.profile.layout import PRESETS
from vt_core.vocab.tokenizer import Tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "stock": {"head": None, "exact": True},
    "exact": {"head": "prealloc", "exact": True},
}


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option("--task", "tasks", multiple=True, help="Task-vocabulary file.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="math", show_default=True)
@click.option("--limit-mb", "limits", multiple=True, type=int, help="Repeatable.")
@click.option("--prompts", "count", default=2, show_default=True)
@click.option("--max-tokens", default=64, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--patience", default=240.0, show_default=True, help="Seconds that one run may take.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    backend: str,
    model: Path,
    tasks: Sequence[str],
    data: Path,
    preset: str,
    limits: Sequence[int],
    count: int,
    max_tokens: int,
    dtype: str,
    patience: float,
    out: Path,
) -> None:
    prompts = read_prompts([data], PRESETS[preset], Tokenizer(model), limit=count, most_tokens=None)
    common = {
        "backend": backend,
        "model": str(model),
        "stock": str(stock.export(model)),
        "store": "lmdb",
        "task": list(tasks),
        "device": None,
        "dtype": dtype,
        "quantize": None,
    }
    rows = []
    for limit in (None, *limits):
        for name, variant in VARIANTS.items():
            row = measure({"name": name, **common, **variant}, prompts, limit, max_tokens, patience)
            rows.append(row)
            click.echo(json.dumps({key: value for key, value in row.items() if key != "texts"}))
    out.write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1) + "\n")
    texts = [row["texts"] for row in rows if row["texts"]]
    if any(text != texts[0] for text in texts):
        sys.exit("the texts differ")


def measure(
    job: dict[str, Any], prompts: Prompts, limit_mb: int | None, max_tokens: int, patience: float
) -> dict[str, Any]:
    """One variant under one limit; without a speed where it did not end."""
    texts, tokens, seconds = [], 0, 0.0
    with control_group(None if limit_mb is None else limit_mb << 20) as group:
        drop_caches()
        try:
            with Worker(job, before=group.enter, until=time.monotonic() + patience) as worker:
                worker.request(prompts.warm_up, 8)
                for prompt in prompts.ids:
                    found = worker.request(prompt, max_tokens)
                    texts.append(found["token_ids"])
                    tokens += len(found["token_ids"]) - 1
                    seconds += found["e2e_s"] - found["ttft_s"]
            failed = None
        except (BackendError, TimeoutError) as error:
            failed = str(error) or f"not done in {patience:.0f} s"
        charged = group.peak()
    return {
        "variant": job["name"],
        "limit_mb": limit_mb,
        "tokens_per_s": None if failed else round(tokens / seconds, 2),
        "failed": failed,
        "charged_mb": charged >> 20,
        "prompts": len(prompts.ids),
        "tokens": tokens,
        "texts": None if failed else texts,
    }


if __name__ == "__main__":
    main()
