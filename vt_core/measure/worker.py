"""The parent's side of a variant's process."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from vt_core.errors import BackendError, PromptError
from vt_core.measure.job import Job


class Worker:
    """A process with one variant, loaded. Use it as a context manager.

    Attributes:
        about: device, float type and loading time, see :meth:`vt_core.measure.runner.Measured.about`.
    """

    def __init__(
        self, job: Job, *, before: Callable[[], None] | None = None, until: float | None = None
    ) -> None:
        """Start the process and wait until the variant is loaded.

        Args:
            job: what to load.
            before: runs in the new process before anything else.
            until: time of :func:`time.monotonic` at which to give up waiting.

        Raises:
            BackendError: the variant cannot be loaded. Every method raises it where the process fails.
            TimeoutError: it took too long. Every method raises it.
        """
        self._until = until
        self._name = job.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vt_core.measure.runner"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                preexec_fn=before,
            )
        except BaseException:
            self._log.close()
            raise
        try:
            self.about = self._ask(asdict(job))
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: str | Sequence[int], **options: Any) -> dict[str, Any]:
        """Run a request, see :meth:`vt_core.measure.runner.Measured.generate`.

        Raises:
            PromptError: the model refuses the prompt, for example as too long.
        """
        return self._ask(["generate", prompt, options])

    def warm_up(self, prompt: str | Sequence[int], **options: Any) -> None:
        """Run a request that does not count, and forget the rows that it taught."""
        self._ask(["warm_up", prompt, options])

    def memory(self) -> dict[str, Any]:
        """Peak memory so far, see :meth:`vt_core.measure.runner.Measured.memory`."""
        return self._ask(["memory"])

    def usage(self) -> dict[str, Any]:
        """Processor time and disk reads so far, see :meth:`vt_core.measure.runner.Measured.usage`."""
        return self._ask(["usage"])

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: Any) -> dict[str, Any]:
        self._send(message)
        answer = self._receive()
        if "error" in answer:
            raise BackendError(f"variant {self._name}: {answer['error']}")
        if "refused" in answer:
            raise PromptError(answer["refused"])
        return answer

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _receive(self) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        # Each call has one answer, so no earlier answer can wait in Python's buffer.
        if self._until is not None:
            left = max(0.0, self._until - time.monotonic())
            if not select.select([out], [], [], left)[0]:
                raise TimeoutError
        line = out.readline()
        if not line.endswith("\n"):
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> BackendError:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        if code == -signal.SIGKILL:
            return BackendError(f"variant {self._name} was killed; the system probably ran out of memory")
        last = f": {lines[-1]}" if lines else " without a message"
        return BackendError(f"variant {self._name} ended with code {code}{last}")
