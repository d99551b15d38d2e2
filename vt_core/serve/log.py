"""The server's log: a JSON object per line on standard error, in ASCII, so no text can control a terminal."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from typing import Any

#: Lines that may wait to be written; more are dropped.
MAX_WAITING = 10_000
#: Seconds that waiting lines have at the end of the process.
END_SECONDS = 1.0


class JsonLines(logging.Formatter):
    """Formats a record and its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


class _InBackground(QueueHandler):
    """Leaves the writing to a thread: who does not read standard error must not stop the server."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


class _Writer(QueueListener):
    """Writes the lines. No handler, and not sys.stderr: Python's end waits for their locks."""

    def handle(self, record: logging.LogRecord) -> None:
        content = f"{record.msg}\n".encode()
        with suppress(OSError):
            while content:
                content = content[os.write(2, content) :]


def start_log() -> None:
    """Send the log of this package's server and of uvicorn to standard error."""
    waiting: queue.Queue[Any] = queue.Queue(MAX_WAITING)
    handler = _InBackground(waiting)
    handler.setFormatter(JsonLines())
    for name, level in (("vt.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    _Writer(waiting).start()

    def write_rest() -> None:
        end = time.monotonic() + END_SECONDS
        while waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    atexit.register(write_rest)
