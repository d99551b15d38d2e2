"""Processes that hold one variant each, asked in turn."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from vt_core.errors import BackendError


class Worker:
    """A process with one variant, loaded; use it as a context.

    Args:
        job: what it is told, see :func:`vt_core.measure.bench.run.job`.
        before: runs in the new process before anything else.
        until: when to give up waiting for it, in seconds of the monotonic clock.

    Raises, with every method:
        BackendError: it failed.
        TimeoutError: it took too long.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        before: Callable[[], None] | None = None,
        until: float | None = None,
    ) -> None:
        self._until = until
        self._name = job["name"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vt_core.measure.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            preexec_fn=before,
        )
        self.about: dict[str, Any] = {}
        try:
            self._send(dict(job))
            self.about = self._receive()
        except BaseException:
            self.close()
            raise

    def request(self, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
        """See :meth:`vt_core.measure.bench.worker.Measured.request`."""
        self._send({"prompt": list(prompt), "max_tokens": max_tokens})
        return self._receive()

    def memory(self) -> dict[str, Any]:
        """See :meth:`vt_core.measure.bench.worker.Measured.memory`."""
        self._send(None)
        return self._receive()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        # One answer to one request: nothing waits in a buffer here.
        if (
            self._until is not None
            and not select.select([out], [], [], max(0.0, self._until - time.monotonic()))[0]
        ):
            raise TimeoutError
        line = out.readline()
        if not line.endswith("\n"):
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BackendError(f"variant {self._name}: {answer['error']}")
        return answer

    def _failure(self) -> BackendError:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        if code == -9:
            return BackendError(f"variant {self._name} was killed, most likely for want of memory")
        said = lines[-1] if lines else "it said nothing"
        return BackendError(f"variant {self._name} ended with code {code}: {said}")
