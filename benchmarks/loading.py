"""Time from a cold start to the first token, memory while loading, and what is read for it, beside the stock
framework.

    python -m benchmarks.loading --backend torch --model MODEL_DIR --work DIR --out FILE.json

copies the model directory into DIR, writes the stock framework's there too, and loads them in turns, each in
a process of its own in which the framework has been imported already. Before each load the model's files
leave the system's page cache (unless --warm); behind it the pages of the row store that came in are counted.
Linux only.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click

from converters.export import stock_copy
from vt_core.decode.backend import BACKENDS, stock_backend
from vt_core.decode.metrics import ProcessMemory
from vt_core.files.model_dir import STORE_NAME, ModelDirectory

VARIANTS = ("stock", "approximate", "exact")
PROMPT = "The capital of France is"


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), required=True, help="A model directory."
)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="For copies of the model.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warm", is_flag=True, help="Leave the files in the page cache.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(backend: str, model: Path, work: Path, dtype: str, rounds: int, warm: bool, out: Path) -> None:
    paths = {"stock": stock_copy(ModelDirectory.open(model))}
    own = work / f"{model.name}-copy"
    if not own.exists():
        shutil.copytree(model, own)
    paths |= dict.fromkeys(VARIANTS[1:], own)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, path in paths.items():
            if not warm:
                evict(path)
            job = {"backend": backend, "variant": name, "path": str(path), "dtype": dtype}
            result = run(job)
            result["store_cached_bytes"] = cached_bytes(own / STORE_NAME / "data.mdb")
            found[name].append(result)
    tokens = {result["token"] for results in found.values() for result in results}
    table_bytes = ModelDirectory.open(own).manifest.table_bytes
    report = {
        "command": sys.argv,
        "model": model.name,
        "dtype": dtype,
        "warm": warm,
        "table_bytes": table_bytes,
        "same_token": len(tokens) == 1,
        "variants": {name: summary(results, found["stock"]) for name, results in found.items()},
        "rounds": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(f"{model.name} {backend} {dtype}, tables of {table_bytes / 1e6:.0f} MB")
    for name, values in report["variants"].items():
        click.echo(f"{name:<12}" + "  ".join(f"{key} {value:.2f}" for key, value in values.items()))
    if len(tokens) != 1:
        sys.exit(f"the variants chose different first tokens: {sorted(tokens)}")


def summary(results: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds; ratios are of pairs within a round."""

    def value(name: str) -> float:
        return median([result[name] for result in results])

    def ratio(name: str) -> float:
        return median([own[name] / other[name] for own, other in zip(results, base, strict=True)])

    # Processor time is what the two can be compared by on a machine that others use as well.
    values = {
        "load s": value("load_s"),
        "first token s": value("first_s"),
        "to stock": ratio("first_s"),
        "processor s": value("cpu_s"),
        "processor to stock": ratio("cpu_s"),
        "peak of loading MB": value("loading_bytes") / 1e6,
        "loading to stock": ratio("loading_bytes"),
        "peak MB": value("peak_bytes") / 1e6,
        "peak to stock": ratio("peak_bytes"),
        "read from disk MB": value("disk_bytes") / 1e6,
    }
    if "row_bytes" in results[0]:
        values["rows MB"] = value("row_bytes") / 1e6
        values["store in page cache MB"] = value("store_cached_bytes") / 1e6
    return values


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a fresh process."""
    command = [sys.executable, "-c", "from benchmarks.loading import work; work()"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job['variant']} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def work() -> None:
    """The job on standard input, what it took on standard output. Bytes of memory are above the imports."""
    job = json.loads(sys.stdin.read())
    if job["backend"] == "torch":
        import torch  # noqa: F401
        import transformers.models.auto.modeling_auto
        import transformers.models.auto.tokenization_auto  # noqa: F401

        import vt_torch.decoder  # noqa: F401
    else:
        import mlx_lm.tokenizer_utils
        import mlx_lm.utils  # noqa: F401

        import vt_mlx.decoder  # noqa: F401
    import vt_core.model  # noqa: F401

    memory = ProcessMemory()
    idle, disk, cpu = memory.peak, _disk_bytes(), time.process_time()
    times = [time.perf_counter()]
    measure: Any = (_stock if job["variant"] == "stock" else _Reduced)(job)
    times.append(time.perf_counter())
    loading = memory.peak
    token = measure()
    times.append(time.perf_counter())
    result = {
        "token": token,
        "load_s": times[1] - times[0],
        "first_s": times[2] - times[0],
        "cpu_s": time.process_time() - cpu,
        "loading_bytes": loading - idle,
        "peak_bytes": memory.peak - idle,
        "disk_bytes": _disk_bytes() - disk,
    }
    if job["variant"] != "stock":
        rows = measure.model.decoder._rows
        tables = {id(table): table for table in (rows.embedding, rows.head_table)}
        result["row_bytes"] = sum(table.bytes_read for table in tables.values())
    print(json.dumps(result))


def _stock(job: dict[str, Any]) -> Callable[[], int]:
    path, backend = job["path"], job["backend"]
    if backend == "torch":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
    else:
        from mlx_lm.utils import load_tokenizer

        tokenizer = load_tokenizer(Path(path))
    dtype = job["dtype"]
    model = stock_backend(backend).load_stock(Path(path), device="cpu", dtype=dtype, stored=dtype)

    def first() -> int:
        return model.generate(tokenizer.encode(PROMPT), 1, [0], lambda: None)[0]

    return first


class _Reduced:
    def __init__(self, job: dict[str, Any]) -> None:
        from vt_core import load

        self.model = load(job["path"], backend=job["backend"], dtype=job["dtype"])
        self.approximate = job["variant"] == "approximate"

    def __call__(self) -> int:
        stream = self.model.stream(PROMPT, raw=True, max_tokens=1, approximate=self.approximate)
        token = next(stream).token_id
        assert token is not None
        stream.close()
        return token


def _disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def evict(directory: Path) -> None:
    """Drop a directory's files from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cached_bytes(path: Path) -> int:
    """Bytes of a file in the page cache."""
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
