"""What exact decoding holds in memory beside what must be there, in a fresh process with a decoder alone.

Reads a job as JSON on standard input and prints what it measured as one JSON line:
``{"backend", "model", "prompts": [[id, …], …], "max_tokens", "dtype", "static": [id, …]}``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.decode.backend import backend, stock_backend
from vt_core.decode.metrics import ProcessMemory
from vt_core.decode.policy import BlockPolicy
from vt_core.decode.request import Request
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.files.model_dir import ModelDirectory

Job = dict[str, Any]


def run(job: Job) -> dict[str, Any]:
    """Run a job in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decoder_memory"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def work(job: Job) -> dict[str, Any]:
    """Generate exactly, without a tokenizer; the ``parts`` are the bytes that it cannot do without."""
    stock_backend(job["backend"])  # imports the framework
    memory = ProcessMemory()
    idle = memory.peak
    directory = ModelDirectory.open(job["model"])
    options = {"head": "prealloc", "store": "lmdb", "device": None, "tile_bytes": None}
    decoder: Any = backend(job["backend"]).load_decoder(directory, dtype=job["dtype"], **options)
    decoder.head.set_static(job["static"])
    memory.sample()
    loading_peak = memory.peak
    # Begins the system's peak anew: loading is one matter, decoding another.
    Path("/proc/self/clear_refs").write_text("5")
    rows, policy, parts = directory.manifest.vocab_rows, BlockPolicy(), {}
    for prompt in job["prompts"]:
        request = Request(decoder, Sampler(SamplerSettings(), rows), job["max_tokens"], (), policy)
        for _ in request.run(np.array(prompt)):
            for name, size in _sizes(job["backend"], decoder).items():
                parts[name] = max(size, parts.get(name, 0))
    return {
        "idle_bytes": idle,
        "peak_bytes": memory.peak,
        "loading_peak_bytes": loading_peak,
        "allocator_bytes": decoder.peak_memory(),
        "parts": parts,
    }


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


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.stdin.read()))))
