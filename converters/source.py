"""What a conversion reads: one small interface over Hugging Face directories and GGUF files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from vt_core.errors import ModelError, shorten

if TYPE_CHECKING:
    import numpy as np

#: Upper bound of one chunk in bytes, unless a single row is larger: what keeps a conversion's memory flat.
CHUNK_BYTES = 8 << 20
SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a source, under its Hugging Face name.

    `dtype` is a storage dtype of `vt_core.files.dtypes` ("bfloat16", "float32", …), or for a quantized source
    the name of the format it holds; `shape` is the shape of the values, slowest axis first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Source(Protocol):
    """A model to convert. Opening it has checked its headers; its tensors are read a chunk at a time."""

    #: "huggingface" or "gguf".
    kind: str
    #: What the user called it: a hub id, a directory's name, a file's name.
    name: str
    #: Content of config.json.
    config: dict[str, Any]
    #: Content of generation_config.json, where there is one.
    generation_config: dict[str, Any] | None
    #: Storage dtype of the model's floats when the user asks for none.
    default_dtype: str

    def fingerprint(self) -> str:
        """A short text that changes when the source changes; reads little of it."""

    def tensors(self) -> list[TensorInfo]:
        """Every tensor, in the order in which it is cheapest to read."""

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        """The tensor's values as the storage dtype `dtype`.

        C-contiguous arrays of whole rows (leading axis) whose bytes, one after another, are the tensor's, at
        most `CHUNK_BYTES` each; bfloat16 is carried as uint16. The caller is done with one before it asks for
        the next.
        """

    def write_tokenizer(self, out: Path) -> str:
        """Write tokenizer.json and what belongs to it (tokenizer_config.json, chat template) into `out`.

        Returns the digest of the tokenizer.
        """


@dataclass(frozen=True)
class Piece:
    """One of the tensors that a matrix becomes."""

    info: TensorInfo
    matrix: TensorInfo
    kind: str  #: which one; the end of its name


AnyPiece = TypeVar("AnyPiece", bound=Piece)


class ReplacedMatrices(ABC, Generic[AnyPiece]):
    """Another source, some of its matrices as several tensors. A :class:`Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.kind, self.name, self.config = source.kind, source.name, source.config
        self.default_dtype, self.generation_config = source.default_dtype, source.generation_config
        self._tensors: list[TensorInfo] = []
        self._pieces: dict[str, AnyPiece] = {}

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def tensors(self) -> list[TensorInfo]:
        return self._tensors

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        if name not in self._pieces:
            return self._source.chunks(name, dtype)
        return self._made(self._pieces[name], dtype)

    def write_tokenizer(self, out: Path) -> str:
        return self._source.write_tokenizer(out)

    def _replace(self, pieces: Iterable[AnyPiece]) -> None:
        """List the tensors that a matrix becomes, in its place."""
        for piece in pieces:
            self._tensors.append(piece.info)
            self._pieces[piece.info.name] = piece

    @abstractmethod
    def _made(self, piece: AnyPiece, dtype: str) -> Iterator[np.ndarray]:
        """The chunks of one of these tensors. It is made from the whole matrix each time: to keep the others
        would take memory.
        """


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Turn an OSError about the source into a ModelError."""
    try:
        yield
    except OSError as error:
        file = "" if error.filename is None else f": {shorten(str(error.filename), 300)}"
        raise ModelError(f"{shorten(str(source), 300)} cannot be read: {error.strerror}{file}.") from error


def utf8(name: str) -> str:
    """A file name that can be written as UTF-8: other bytes appear as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Fingerprint of some files, from each one's name, length, time of change, first bytes and last bytes.

    Reads at most 128 KiB of each, so that a model of many gigabytes is recognized at once.
    """
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{utf8(path.name)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, status.st_size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
