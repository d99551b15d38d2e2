"""Corpus files as byte streams: plain, or compressed with gzip or Zstandard."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from vt_core.errors import DataError

SUFFIXES = (".gz", ".zst")

_BLOCK = 512 * 1024
_ZSTD_MODULES = ("compression.zstd", "zstandard")  # Python 3.14's own module, and the package


def open_decompressed(path: Path, file: io.RawIOBase | None = None) -> io.BufferedReader:
    """The content of a file, decompressed as its suffix says.

    Args:
        path: the file.
        file: the open file, if `path` is not a local file.

    Raises:
        DataError: there is no library that decompresses it.
        OSError: the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.open(file or path, "rb"))
    if suffix != ".zst":
        return path.open("rb") if file is None else io.BufferedReader(file)
    zstd = _zstd_module(path)
    new = (
        zstd.ZstdDecompressor
        if hasattr(zstd, "ZstdFile")
        else lambda: zstd.ZstdDecompressor().decompressobj()
    )
    return io.BufferedReader(FrameReader(file or path.open("rb"), new, zstd.ZstdError))


#: What reading a damaged or truncated file raises.
DAMAGE = (OSError, EOFError, zlib.error)


class FrameReader(io.RawIOBase):
    """Reads all frames of a compressed file. Raises EOFError at the end of a truncated one.

    The readers of `zstandard` stop silently after the first frame, and where a file is truncated.
    """

    def __init__(
        self,
        file: IO[bytes] | io.RawIOBase,
        new: Callable[[], Any],
        error: type[Exception] = zlib.error,
        block: int = _BLOCK,
    ) -> None:
        """
        Args:
            file: the compressed file.
            new: makes a decompressor for one frame, with `decompress`, `eof` and `unused_data`.
            error: what the decompressor raises for damaged data.
            block: bytes to read at a time.
        """
        self._file = file
        self._new = new
        self._error = error
        self._block = block
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._file.read(self._block)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends inside a compressed frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self) -> None:
        self._frame = self._frame or self._new()
        try:
            self._output = memoryview(self._frame.decompress(self._input))
        except self._error as error:
            raise zlib.error(str(error)) from error
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstd_module(path: Path) -> Any:
    for name in _ZSTD_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DataError(f"{path}: .zst files need the library zstandard; install it with pip install zstandard.")
