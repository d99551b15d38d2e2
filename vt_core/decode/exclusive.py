"""One request at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vt_core.errors import BackendError

Item = TypeVar("Item")


class Exclusive:
    """Lets one request at a time use a model, and knows the streams that may hold it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the model.

        Raises:
            BackendError: another request holds it.
        """
        if not self._lock.acquire(blocking=False):
            raise _busy()
        try:
            yield
        finally:
            self._lock.release()

    def track(self, stream: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """Remember a stream for :meth:`close_streams`, and return it."""
        self._streams.add(stream)
        return stream

    def close_streams(self) -> None:
        """Close the streams that were not read to their end.

        Raises:
            BackendError: another thread is reading one.
        """
        for stream in list(self._streams):
            try:
                stream.close()
            except ValueError as error:
                raise _busy() from error


def _busy() -> BackendError:
    return BackendError("this model is in the middle of a request; finish or close its stream first")
