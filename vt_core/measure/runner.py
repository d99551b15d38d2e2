"""The process of one variant: loads it, runs requests, and measures their time and memory.

It reads JSON lines from standard input, first a job and then calls of :class:`Measured`, and answers each
with a JSON line. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from vt_core.decode.metrics import ProcessMemory
from vt_core.measure.job import Job

#: Calls that a worker may make.
CALLS = ("generate", "warm_up", "memory", "usage")


class Runner(Protocol):
    """A loaded variant."""

    device: str
    dtype: str

    def generate(
        self, prompt: str | list[int], options: Mapping[str, Any], on_token: Callable[[], object]
    ) -> dict[str, Any]:
        """Generate greedily.

        Args:
            prompt: full ids or, for vt, text.
            options: arguments of :meth:`vt_core.Model.stream`; the stock framework takes ``max_tokens`` only.
            on_token: called for each token.

        Returns:
            ``token_ids``, and what else is known of the request.
        """

    def forget(self) -> None:
        """Forget what earlier requests taught."""

    def allocator_bytes(self) -> int | None:
        """Peak of the device's allocator, where there is one."""


class StockRunner:
    """The stock framework on its plain copy of the model."""

    def __init__(self, job: Job) -> None:
        from vt_core.decode.backend import stock_backend
        from vt_core.files.model_dir import ModelDirectory
        from vt_core.host import trim_heap
        from vt_core.vocab.tokenizer import Tokenizer

        assert job.stock is not None, "the stock framework needs its copy"
        manifest = ModelDirectory.open(job.model).manifest
        # Kept in memory, because every user of a model holds a tokenizer, and so does vt.
        self._tokenizer = Tokenizer(Path(job.model))
        trim_heap()
        # The same ids end the text of every variant.
        self._eos = self._tokenizer.eos_ids(manifest.vocab_rows)
        self._stock = stock_backend(job.backend).load_stock(
            Path(job.stock), device=job.device, dtype=job.dtype, stored=manifest.dtype
        )
        self.device, self.dtype = self._stock.device, self._stock.dtype

    def generate(
        self, prompt: str | list[int], options: Mapping[str, Any], on_token: Callable[[], object]
    ) -> dict[str, Any]:
        assert not isinstance(prompt, str), "the stock framework takes ids"
        return {"token_ids": self._stock.generate(prompt, options["max_tokens"], self._eos, on_token)}

    def forget(self) -> None:
        """Nothing is learned."""

    def allocator_bytes(self) -> int | None:
        return self._stock.peak_memory()


class VtRunner:
    """A model of vt."""

    def __init__(self, job: Job) -> None:
        from vt_core import load
        from vt_core.vocab.tokenizer import Tokenizer

        assert job.head is not None, "a model of vt has a head"
        self._how: dict[str, Any] = {
            "approximate": not job.exact,
            "dynamic": job.dynamic,
            "draft": job.draft,
            "draft_tokens": job.draft_tokens,
        }
        self._model = load(
            job.model,
            backend=job.backend,
            task=job.task,
            head=job.head,
            store=job.store,
            device=job.device,
            dtype=job.dtype,
            quantize=job.quantize,
            compile=job.compile,
            draft_file=job.draft_file,
        )
        if job.tokenizer is not None:
            self._model.tokenizer = Tokenizer(self._model.directory.path, Path(job.tokenizer))
        self.device, self.dtype = self._model.decoder.device, self._model.decoder.dtype

    def generate(
        self, prompt: str | list[int], options: Mapping[str, Any], on_token: Callable[[], object]
    ) -> dict[str, Any]:
        result = None
        for chunk in self._model.stream(prompt, **options, **self._how):
            if chunk.token_id is not None:
                on_token()
            result = chunk.result
        assert result is not None, "a stream ends with its result"
        return result.to_dict()

    def forget(self) -> None:
        self._model.forget_learned()

    def allocator_bytes(self) -> int | None:
        return self._model.decoder.peak_memory()


class Measured:
    """A runner whose time and memory are measured."""

    def __init__(self, job: Job) -> None:
        from vt_core.decode.backend import stock_backend

        stock_backend(job.backend)  # imports the framework, so that its memory counts as idle
        self._memory = ProcessMemory()
        self._idle = self._memory.peak
        self._cpu_s, self._disk = time.process_time(), _disk_bytes() or 0
        started = time.perf_counter()
        self._runner: Runner = StockRunner(job) if job.head is None else VtRunner(job)
        self._load_s = time.perf_counter() - started
        self._memory.sample()
        self._loading = self._memory.peak

    def about(self) -> dict[str, Any]:
        """Device, float type, and seconds of loading."""
        return {"device": self._runner.device, "dtype": self._runner.dtype, "load_s": self._load_s}

    def generate(self, prompt: str | list[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Run a request; see :meth:`Runner.generate`.

        Returns:
            What the runner returns, with ``ttft_s`` (call to first token), ``decode_s`` (first token to last)
            and ``e2e_s`` (the whole call), in seconds.
        """
        times: list[float] = []

        def on_token() -> None:
            times.append(time.perf_counter())
            if len(times) == 1:
                self._memory.sample()

        gc.collect()  # garbage of an earlier request must not cost this one time
        started = time.perf_counter()
        found = self._runner.generate(prompt, options, on_token)
        ended = time.perf_counter()
        self._memory.sample()
        return found | {
            "ttft_s": times[0] - started,
            "decode_s": times[-1] - times[0],
            "e2e_s": ended - started,
        }

    def warm_up(self, prompt: str | list[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Run a request that does not count, and forget the rows that it taught."""
        found = self.generate(prompt, options)
        self._runner.forget()
        return found

    def memory(self) -> dict[str, int | None]:
        """Bytes: resident after the imports, peak of loading, peak of all, and peak of anonymous memory."""
        return {
            "idle_bytes": self._idle,
            "loading_peak_bytes": self._loading,
            "peak_bytes": self._memory.peak,
            "anonymous_bytes": self._memory.anonymous,
            "allocator_bytes": self._runner.allocator_bytes(),
        }

    def usage(self) -> dict[str, float | None]:
        """Processor seconds and bytes read from disk, since the imports."""
        disk = _disk_bytes()
        return {
            "cpu_s": time.process_time() - self._cpu_s,
            "disk_bytes": None if disk is None else disk - self._disk,
        }


def _disk_bytes() -> int | None:
    """Bytes that this process has read from disk, where the system tells (Linux)."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def serve(lines: Iterator[str], answers: IO[str]) -> None:
    """Answer calls until there are no more.

    A VtError is an answer too. A refused prompt (PromptError) leaves the variant usable; any other error ends
    the process.
    """
    from vt_core.errors import PromptError, VtError

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        measured = Measured(Job(**json.loads(next(lines))))
        answer(measured.about())
        for line in lines:
            name, *arguments = json.loads(line)
            assert name in CALLS, name
            try:
                answer(getattr(measured, name)(*arguments))
            except PromptError as error:
                answer({"refused": str(error)})
    except VtError as error:
        answer({"error": str(error)})


def lines_until_closed(descriptor: int) -> Iterator[str]:
    """Lines of a pipe whose writer must stay alive: the process ends when the pipe does.

    A thread waits for the end, because a parent that was killed must not leave a busy orphan.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        # Not through sys.stdin: a thread that waits in it can abort the interpreter's shutdown.
        rest = b""
        while content := os.read(descriptor, 1 << 16):
            *complete, rest = (rest + content).split(b"\n")
            for line in complete:
                lines.put(line.decode())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == "__main__":
    # Answers use the original standard output; whatever a library prints goes to standard error.
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        serve(lines_until_closed(0), own_output)
