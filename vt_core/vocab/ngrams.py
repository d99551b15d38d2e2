"""The n-gram table of a task: which token most often follows the last ones (TASC-spec, arXiv 2602.24174).

An entry stands for one context: 1 to 4 tokens of an output. It holds the context's hash, the token that
follows it most often, how often, and in which share of the cases. Two contexts with one hash do no harm: the
model checks every drafted token. The file is mapped, so opening it reads its header only::

    8 bytes   MAGIC
    8 bytes   length of the header, little endian; the header ends at a multiple of 64 bytes of the file
    header    JSON, padded with spaces
    for each context length, from 1 on, with n entries:
        n * uint64  hashes, ascending
        n * uint32  token, or END
        n * uint16  times that the token followed, 65,535 for more
        n * uint16  share of the context's occurrences, in 65,535ths
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vt_core.errors import VocabularyError, shorten
from vt_core.files.json_files import Fields, lfs_pointer, parse_object, write_atomically

#: Version of the file's format.
FORMAT = "vt-ngrams/1"
MAGIC = b"VTNGRAMS"
#: Most tokens of a context: an n-gram is a context and the token after it.
MAX_CONTEXT = 8
#: Largest header, in bytes.
MAX_HEADER = 1 << 20
#: Bytes of an entry.
ENTRY_BYTES = 16

#: In a context: the beginning of the output. No context reaches beyond it, whatever the prompt was.
BEGIN = 0xFFFF_FFFE
#: As the token that follows: the output ends here.
END = 0xFFFF_FFFF

#: Hash of the empty context.
SEED = 0x243F_6A88_85A3_08D3
_FACTOR = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1
#: Largest stored count and share.
_TOP = 0xFFFF

U64 = npt.NDArray[np.uint64]


def extend_hash(hash: int, token: int) -> int:
    """Hash of the context `token + context`, from the hash of `context`."""
    hash = ((hash ^ token) * _FACTOR) & _MASK
    return hash ^ (hash >> 32)


def extend_hashes(hashes: U64, tokens: npt.NDArray[Any]) -> U64:
    """:func:`extend_hash` of each pair."""
    mixed = (hashes ^ tokens.astype(np.uint64)) * np.uint64(_FACTOR)
    return mixed ^ (mixed >> np.uint64(32))


def context_hashes(tail: Sequence[int], longest: int) -> list[int]:
    """Hashes of the contexts of 1, 2, … `longest` tokens at the end of `tail`, as far as it reaches."""
    hashes, hash = [], SEED
    for token in reversed(tail[-longest:] if longest else ()):
        hash = extend_hash(hash, token)
        hashes.append(hash)
    return hashes


class Found(NamedTuple):
    """The entry of the longest context that a table knows."""

    order: int  #: tokens of the context
    token: int  #: full id, or `END`
    times: int  #: that the token followed
    share: float  #: of the context's occurrences


class Section:
    """The entries of all contexts of one length."""

    def __init__(
        self, hashes: U64, tokens: npt.NDArray[Any], counts: npt.NDArray[Any], shares: npt.NDArray[Any]
    ) -> None:
        """Arrays of one length; `hashes` ascend. They are kept, not copied, on little-endian machines."""
        self.hashes = np.asarray(hashes, np.uint64)
        self.tokens = np.asarray(tokens, np.uint32)
        self.counts = np.asarray(counts, np.uint16)
        self.shares = np.asarray(shares, np.uint16)
        # Single items of a memoryview are read several times as fast as those of an array.
        self._hashes = self.hashes.data
        self._entries = self.tokens.data, self.counts.data, self.shares.data

    def __len__(self) -> int:
        return len(self.hashes)

    def index(self, hash: int) -> int | None:
        """Place of a context, or None."""
        hashes = self._hashes
        at = bisect_left(hashes, hash)
        return at if at < len(hashes) and hashes[at] == hash else None

    def entry(self, at: int) -> tuple[int, int, int]:
        """Token, count and share at a place."""
        tokens, counts, shares = self._entries
        return tokens[at], counts[at], shares[at]


@dataclass(frozen=True, eq=False)
class NgramTable:
    """Tokens that follow the contexts of a task's outputs."""

    #: Digest of the tokenizer that the ids belong to.
    tokenizer_digest: str
    #: Entries by the length of their context, from 1 on.
    sections: tuple[Section, ...]
    #: Name of the task, and of the model that it was profiled for; for messages.
    name: str = ""
    model: str = ""
    #: Outputs that were counted.
    examples: int = 0
    #: Times that a token followed, at least, in every entry.
    min_count: int = 1
    #: Frequent continuations as text: `{"context", "next", "count", "share"}`.
    samples: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def longest(self) -> int:
        """Tokens of the longest contexts."""
        return len(self.sections)

    @property
    def entries(self) -> tuple[int, ...]:
        """Entries by the length of their context, from 1 on."""
        return tuple(map(len, self.sections))

    def find(self, hashes: Sequence[int]) -> Found | None:
        """The entry of the longest of several contexts; `hashes` are those of :func:`context_hashes`."""
        for order in range(min(len(hashes), len(self.sections)), 0, -1):
            section = self.sections[order - 1]
            at = section.index(hashes[order - 1])
            if at is not None:
                token, times, share = section.entry(at)
                return Found(order, token, times, share / _TOP)
        return None

    def check(self, tokenizer_digest: str, model: str = "") -> None:
        """Check that the table belongs to a model's tokenizer. Raises VocabularyError."""
        if tokenizer_digest != self.tokenizer_digest:
            made_for, has = _tokenizer(self.model, self.tokenizer_digest), _tokenizer(model, tokenizer_digest)
            raise VocabularyError(
                f"N-gram table '{self.name}' was made for {made_for}, but the model has {has}; profile the "
                "task for this model."
            )

    @classmethod
    def open(cls, path: str | Path) -> NgramTable:
        """Map a file. Its entries are read when they are asked for. Raises VocabularyError."""
        try:
            with open(path, "rb") as file:
                start = file.read(len(MAGIC) + 8)
                if sentence := lfs_pointer(start + file.read(64)):
                    raise VocabularyError(f"{path} {sentence}.")
                if not start.startswith(MAGIC) or len(start) < len(MAGIC) + 8:
                    raise VocabularyError(f"{path}: not an n-gram table; profile the task to make one.")
                length = int.from_bytes(start[len(MAGIC) :], "little")
                if length > MAX_HEADER or (len(start) + length) % 64:
                    raise _damaged(path, f"its header is said to have {length} bytes")
                file.seek(len(start))
                header = file.read(length)
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as fault:  # ValueError: a name with a null character
            reason = getattr(fault, "strerror", None) or fault
            raise VocabularyError(f"{path}: the n-gram table cannot be read ({reason}).") from fault
        values = parse_object(header, path, "n-gram table", VocabularyError)
        fields = Fields(str(path), values, VocabularyError, "profile the task again")
        return _parse(fields, content, len(start) + length)

    def content(self) -> bytes:
        """The bytes of the file."""
        header = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "tokenizer_digest": self.tokenizer_digest,
            "examples": self.examples,
            "min_count": self.min_count,
            "entries": list(self.entries),
            "samples": [dict(sample) for sample in self.samples],
        }
        text = json.dumps(header).encode()
        start = len(MAGIC) + 8
        text += b" " * (-(start + len(text)) % 64)
        parts = [MAGIC, len(text).to_bytes(8, "little"), text]
        for section in self.sections:
            parts += [section.hashes.astype("<u8").tobytes(), section.tokens.astype("<u4").tobytes()]
            parts += [section.counts.astype("<u2").tobytes(), section.shares.astype("<u2").tobytes()]
        return b"".join(parts)

    def save(self, path: str | Path) -> None:
        """Write the file atomically. Raises OutputError."""
        write_atomically(path, self.content())


def make_section(
    hashes: U64, tokens: npt.NDArray[Any], counts: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]
) -> Section:
    """A section of entries that occurred `counts` times in `totals` occurrences of their context."""
    shares = np.rint(counts / totals * _TOP) if len(counts) else np.zeros(0)
    return Section(hashes, tokens, np.minimum(counts, _TOP), shares)


def table_path(task: str | Path) -> Path:
    """Where the table of a task file is: `math.vt.json` has `math.ngrams` beside it."""
    task = Path(task)
    return task.with_name(task.name.removesuffix(".json").removesuffix(".vt") + ".ngrams")


def open_tables(tasks: Iterable[str | Path], tokenizer_digest: str, model: str = "") -> list[NgramTable]:
    """The tables beside some task files, of those that have one. Raises VocabularyError."""
    tables = [NgramTable.open(path) for path in map(table_path, tasks) if path.exists()]
    for table in tables:
        table.check(tokenizer_digest, model)
    return tables


def _tokenizer(model: str, digest: str) -> str:
    return f"tokenizer {shorten(digest[:12])[1:-1]}" + (f" of {model}" if model else "")


def _damaged(path: str | Path, what: str) -> VocabularyError:
    return VocabularyError(f"{path}: the n-gram table is damaged: {what}; profile the task again.")


def _parse(fields: Fields, content: mmap.mmap, start: int) -> NgramTable:
    if (found := fields.values.get("format")) != FORMAT:
        raise VocabularyError(
            f"{fields.where}: format {shorten(found)} is unknown; this version reads {FORMAT!r}."
        )
    # No more entries than the file has bytes for; so no sum overflows.
    entries = fields.whole_list("entries", len(content) // ENTRY_BYTES).tolist()
    if len(entries) > MAX_CONTEXT:
        raise fields.fault("entries", f"has {len(entries)} context lengths, more than {MAX_CONTEXT}")
    if len(content) != start + ENTRY_BYTES * sum(entries):
        raise _damaged(
            fields.where, f"{len(content)} bytes for {sum(entries)} entries after a header of {start} bytes"
        )
    sections, at = [], start
    for count in entries:
        arrays = []
        for dtype in ("<u8", "<u4", "<u2", "<u2"):
            arrays.append(np.frombuffer(content, dtype, count, at))
            at += arrays[-1].nbytes
        sections.append(Section(*arrays))
    return NgramTable(
        tokenizer_digest=fields.text("tokenizer_digest"),
        sections=tuple(sections),
        name=fields.text("name"),
        model=fields.text("model"),
        examples=fields.whole("examples"),
        min_count=fields.whole("min_count", least=1),
        samples=_samples(fields),
    )


def _samples(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    samples = fields.entries("samples")
    for sample in samples:
        sample.text("context"), sample.text("next"), sample.whole("count")
        share = sample.typed("share", float, "a share")
        if not 0 <= share <= 1:
            raise sample.fault("share", f"is {share}, not from 0 to 1")
    return tuple(sample.values for sample in samples)
