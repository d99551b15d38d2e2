"""Cold start: time to the first token, memory and disk reads of loading, for vt and the stock framework.

    python -m benchmarks.loading --backend torch --model MODEL_DIR --work DIR --out FILE.json

copies the model directory into DIR and loads it in turns with the stock framework's plain copy, each in a
process of its own that has imported the framework. Before each load the model's files are dropped from the
page cache (unless --warm); afterwards the pages of the row store in the cache are counted. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click

from converters.export import stock_copy
from vt_core.decode.backend import BACKENDS
from vt_core.files.model_dir import STORE_NAME, ModelDirectory
from vt_core.measure.job import Job
from vt_core.measure.machine import command_text, machine
from vt_core.measure.variants import STOCK, parse_variants
from vt_core.measure.worker import Worker
from vt_core.vocab.tokenizer import Tokenizer

VARIANTS = parse_variants("stock,prealloc-approximate,prealloc")
PROMPT = "The capital of France is"


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder for a copy of the model."
)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warm", is_flag=True, help="Leave the files in the page cache.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(backend: str, model: Path, work: Path, dtype: str, rounds: int, warm: bool, out: Path) -> None:
    plain = stock_copy(ModelDirectory.open(model))
    own = work / f"{model.name}-copy"
    if not own.exists():
        shutil.copytree(model, own)
    store = own / STORE_NAME / "data.mdb"
    prompt = Tokenizer(own).encode(PROMPT).tolist()
    options = {"backend": backend, "model": str(own), "stock": str(plain), "device": "cpu", "dtype": dtype}
    found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            if not warm:
                evict(plain if variant.name == STOCK else own)
            result = measure(Job.of(variant, **options), prompt)
            found[variant.name].append(result | {"store_cached_bytes": cached_bytes(store)})
    report = {
        "command": command_text("benchmarks.loading", sys.argv[1:]),
        "machine": machine(),
        "model": model.name,
        "table_bytes": ModelDirectory.open(own).manifest.table_bytes,
        "variants": {name: summary(results, found[STOCK]) for name, results in found.items()},
        "rounds": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(f"{model.name} {backend} {dtype}, tables of {report['table_bytes'] / 1e6:.0f} MB")
    for name, values in report["variants"].items():
        click.echo(f"{name:<22}" + "  ".join(f"{key} {value:.2f}" for key, value in values.items()))
    tokens = {result["token"] for results in found.values() for result in results}
    if len(tokens) != 1:
        sys.exit(f"the variants chose different first tokens: {sorted(tokens)}")


def measure(job: Job, prompt: list[int]) -> dict[str, Any]:
    """Load a variant in a fresh process and generate one token. Bytes of memory are above the imports."""
    with Worker(job) as worker:
        found = worker.generate(prompt, max_tokens=1)
        memory, usage = worker.memory(), worker.usage()
        return {
            "token": found["token_ids"][0],
            "load_s": worker.about["load_s"],
            "first_s": worker.about["load_s"] + found["ttft_s"],
            "loading_bytes": memory["loading_peak_bytes"] - memory["idle_bytes"],
            "peak_bytes": memory["peak_bytes"] - memory["idle_bytes"],
            **usage,
        }


def summary(results: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds; ratios are of pairs within a round."""

    def value(name: str) -> float:
        return median([result[name] for result in results])

    def ratio(name: str) -> float:
        return median([own[name] / other[name] for own, other in zip(results, base, strict=True)])

    return {
        "load s": value("load_s"),
        "first token s": value("first_s"),
        "to stock": ratio("first_s"),
        # Less affected by other work on the machine than the wall clock.
        "processor s": value("cpu_s"),
        "processor to stock": ratio("cpu_s"),
        "peak of loading MB": value("loading_bytes") / 1e6,
        "loading to stock": ratio("loading_bytes"),
        "peak MB": value("peak_bytes") / 1e6,
        "peak to stock": ratio("peak_bytes"),
        "read from disk MB": value("disk_bytes") / 1e6,
        "store in page cache MB": value("store_cached_bytes") / 1e6,
    }


def evict(directory: Path) -> None:
    """Drop the files of a directory from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cached_bytes(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapping)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


if __name__ == "__main__":
    main()
