"""One variant of one model in a fresh process, so that its memory is its own.

Reads a job as JSON on standard input and prints what it measured as one JSON line:
``{"backend", "variant", "model", "stock", "prompts": [[id, …], …], "max_tokens", "dtype", "static": [id, …] |
null}``.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.metrics import ProcessMemory

Job = dict[str, Any]


def run(job: Job) -> dict[str, Any]:
    """Run a job in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runs"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{job['variant']} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def work(job: Job) -> dict[str, Any]:
    backend = job["backend"]
    if backend == "torch":
        import torch
        import transformers  # noqa: F401
    else:
        import mlx.core as mx
        import mlx_lm.utils  # noqa: F401
    if job["variant"] == "decoder":
        importlib.import_module(f"vt_{backend}.decoder")
    memory = ProcessMemory()
    idle = memory.peak
    start = time.perf_counter()
    parts: dict[str, int] = {}
    if job["variant"] == "decoder":
        generate = _decoder(job, parts)
    else:
        generate = (_stock if job["variant"] == "stock" else _reduced)(job)
    loaded = time.perf_counter() - start
    memory.sample()
    loading_peak = memory.peak
    if job["variant"] == "decoder":
        # Begins the system's peak anew: loading is one matter, decoding another.
        Path("/proc/self/clear_refs").write_text("5")
    runs = [generate(prompt) for prompt in job["prompts"]]
    memory.sample()
    allocator = int(mx.get_peak_memory()) if backend == "mlx" else None
    if backend == "torch" and torch.cuda.is_available():
        allocator = torch.cuda.max_memory_allocated()
    return {
        "ids": [ids for ids, _ in runs],
        "ttft_s": [times[1] - times[0] for _, times in runs],
        "tokens_per_s": [(len(times) - 2) / (times[-1] - times[1]) for _, times in runs if len(times) > 2],
        "load_s": loaded,
        "idle_bytes": idle,
        "peak_bytes": memory.peak,
        "loading_peak_bytes": loading_peak,
        "anonymous_bytes": memory.anonymous,
        "allocator_bytes": allocator,
        "parts": parts,
    }


def _stock(job: Job) -> Callable[[list[int]], Any]:
    from benchmarks import stock
    from vt_core.model_dir import ModelDirectory
    from vt_core.tokenizer import Tokenizer

    directory = ModelDirectory.open(job["model"])
    eos = Tokenizer(directory.path).eos_ids(directory.manifest.vocab_rows)
    model = stock.LOAD[job["backend"]](job["stock"], job["dtype"])
    return lambda prompt: stock.GENERATE[job["backend"]](model, prompt, job["max_tokens"], eos)


def _reduced(job: Job) -> Callable[[list[int]], Any]:
    from vt_core import load

    exact = job["variant"] == "exact"
    head = "prealloc" if exact else job["variant"]
    model = load(job["model"], backend=job["backend"], head=head, dtype=job["dtype"])
    if job["static"] is not None:
        model.decoder.head.set_static(job["static"])

    def generate(prompt: list[int]) -> Any:
        times, ids = [time.perf_counter()], []
        for chunk in model.stream(prompt, max_tokens=job["max_tokens"], approximate=not exact):
            if chunk.token_id is not None:
                times.append(time.perf_counter())
                ids.append(chunk.token_id)
        return ids, times

    return generate


def _decoder(job: Job, parts: dict[str, int]) -> Callable[[list[int]], Any]:
    """Exact generation without a tokenizer around it; notes in ``parts`` the bytes that it cannot do
    without.
    """
    from vt_core.backend import backend
    from vt_core.generation import Request
    from vt_core.model_dir import ModelDirectory
    from vt_core.policy import BlockPolicy
    from vt_core.sampling import Sampler, SamplerSettings

    directory = ModelDirectory.open(job["model"])
    options = {"head": "prealloc", "store": "lmdb", "device": None, "tile_bytes": None}
    decoder: Any = backend(job["backend"]).load_decoder(directory, dtype=job["dtype"], **options)
    decoder.head.set_static(job["static"])
    rows, policy = directory.manifest.vocab_rows, BlockPolicy()

    def generate(prompt: list[int]) -> Any:
        times, ids = [time.perf_counter()], []
        request = Request(decoder, Sampler(SamplerSettings(), rows), job["max_tokens"], (), policy)
        for token in request.run(np.array(prompt)):
            times.append(time.perf_counter())
            ids.append(token)
            for name, size in _sizes(job["backend"], decoder).items():
                parts[name] = max(size, parts.get(name, 0))
        return ids, times

    return generate


def _sizes(backend: str, decoder: Any) -> dict[str, int]:
    """Bytes of a decoder's parts, in the middle of a request."""
    if backend == "torch":
        body = sum(part.nbytes for part in (*decoder._model.parameters(), *decoder._model.buffers()))
        layers = [(layer.keys, layer.values) for layer in decoder._cache.layers if layer.is_initialized]
        cache = sum(part.nbytes for pair in layers for part in pair)
    else:
        from mlx.utils import tree_flatten

        body = sum(part.nbytes for _, part in tree_flatten(decoder._model.parameters()))
        cache = sum(layer.nbytes for layer in decoder._cache)
    tile = decoder._scan.tile_bytes if decoder._scan is not None else 0
    return {"body": body, "head": decoder.head.nbytes, "tile": tile, "cache": cache}


def median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.stdin.read()))))
