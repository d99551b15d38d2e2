"""What a conversion reads: one small interface over Hugging Face directories and GGUF files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
