"""One variant in a process of its own, so that its memory is its own.

Reads a job and then requests as JSON lines on standard input, and answers each with a JSON line. What the
frameworks print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from vt_core.decode.metrics import ProcessMemory

Found = dict[str, Any]


class Runner(Protocol):
    """A loaded variant."""

    device: str
    dtype: str

    def generate(self, prompt: list[int], max_tokens: int, on_token: Callable[[], object]) -> Found:
        """``token_ids``, and what else is known of the request; ``on_token`` is called for each token."""

    def allocator_bytes(self) -> int | None:
        """Peak of the device's allocator, where there is one."""


class StockRunner:
    """The stock framework on its plain copy of the model."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        from vt_core.decode.backend import stock_backend
        from vt_core.files.model_dir import ModelDirectory
        from vt_core.host import trim_heap
        from vt_core.vocab.tokenizer import Tokenizer

        manifest = ModelDirectory.open(job["model"]).manifest
        # Kept, as whoever asks a model for texts keeps one, and as vt does.
        self._tokenizer = Tokenizer(Path(job["model"]))
        trim_heap()
        # The same ids end a text for every variant.
        self._eos = self._tokenizer.eos_ids(manifest.vocab_rows)
        self._stock = stock_backend(job["backend"]).load_stock(
            Path(job["stock"]), device=job["device"], dtype=job["dtype"], stored=manifest.dtype
        )
        self.device, self.dtype = self._stock.device, self._stock.dtype

    def generate(self, prompt: list[int], max_tokens: int, on_token: Callable[[], object]) -> Found:
        return {"token_ids": self._stock.generate(prompt, max_tokens, self._eos, on_token)}

    def allocator_bytes(self) -> int | None:
        return self._stock.peak_memory()


class VtRunner:
    """A head of vt."""

    FIELDS = (
        "static_rows",
        "learned_rows",
        "dynamic_rows",
        "vocab_bytes_resident",
        "verifications",
        "rescued",
        "rolled_back",
        "verify_s",
    )

    def __init__(self, job: Mapping[str, Any]) -> None:
        from vt_core import load

        self._approximate = not job["exact"]
        options = {name: job[name] for name in ("backend", "head", "store", "device", "dtype", "task")}
        self._model = load(job["model"], quantize=job.get("quantize"), **options)
        self.device, self.dtype = self._model.decoder.device, self._model.decoder.dtype

    def generate(self, prompt: list[int], max_tokens: int, on_token: Callable[[], object]) -> Found:
        result = None
        for chunk in self._model.stream(prompt, max_tokens=max_tokens, approximate=self._approximate):
            if chunk.token_id is not None:
                on_token()
            result = chunk.result
        assert result is not None, "a stream ends with its result"
        return {
            "token_ids": list(result.token_ids),
            **{name: getattr(result.stats, name) for name in self.FIELDS},
        }

    def allocator_bytes(self) -> int | None:
        return self._model.decoder.peak_memory()


class Measured:
    """A runner whose time and memory are taken."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        from vt_core.decode.backend import stock_backend

        stock_backend(job["backend"])  # imports the framework, and all that either kind of runner needs of it
        self._memory = ProcessMemory()
        self._idle = self._memory.peak
        started = time.perf_counter()
        self._runner: Runner = StockRunner(job) if job["head"] is None else VtRunner(job)
        self._load_s = time.perf_counter() - started
        self._memory.sample()
        self._loading = self._memory.peak

    def about(self) -> Found:
        """Where and how it runs."""
        return {"device": self._runner.device, "dtype": self._runner.dtype, "load_s": self._load_s}

    def request(self, prompt: list[int], max_tokens: int) -> Found:
        """One request: its ids, ``ttft_s``, ``decode_s`` (first to last token), ``e2e_s``."""
        times: list[float] = []

        def on_token() -> None:
            times.append(time.perf_counter())
            if len(times) == 1:
                self._memory.sample()

        gc.collect()  # so that no variant pays for another request's rubbish
        started = time.perf_counter()
        found = self._runner.generate(prompt, max_tokens, on_token)
        ended = time.perf_counter()
        self._memory.sample()
        return found | {
            "ttft_s": times[0] - started,
            "decode_s": times[-1] - times[0],
            "e2e_s": ended - started,
        }

    def memory(self) -> dict[str, int | None]:
        """Bytes: after the imports, at the end of loading, in all; of these what was anonymous."""
        return {
            "idle_bytes": self._idle,
            "loading_peak_bytes": self._loading,
            "peak_bytes": self._memory.peak,
            "anonymous_bytes": self._memory.anonymous,
            "allocator_bytes": self._runner.allocator_bytes(),
        }


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more; a VtError is an answer too: ``{"error": …}``."""
    from vt_core.errors import VtError

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        measured = Measured(json.loads(requests.readline()))
        answer(measured.about())
        for line in requests:
            request = json.loads(line)
            answer(measured.memory() if request is None else measured.request(**request))
    except VtError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    # Answers go where standard output went, and whatever a library prints does not get between them.
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        serve(sys.stdin, own_output)
