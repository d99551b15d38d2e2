"""The manifest of a model directory, vt.json: its source, its tables, and size and digest of each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from vt_core.errors import ModelError, shorten
from vt_core.files.dtypes import FLOATS, item_size
from vt_core.files.integers import MODES
from vt_core.files.json_files import Fields, parse_object, read_object
from vt_core.files.quantization import Quantization

MANIFEST_NAME = "vt.json"
#: Version 1 had no digests of files.
FORMAT_VERSION = 2
#: Hugging Face directories, GGUF files, and random weights in the shapes of a model.
SOURCE_KINDS = ("huggingface", "gguf", "random")
STORE_NAME = "vocab.lmdb"
STORE_FILE = f"{STORE_NAME}/data.mdb"
#: Name of the per-layer embedding table (Gemma 3n, Gemma 4).
PER_LAYER = "per_layer"


@dataclass(frozen=True)
class SourceInfo:
    """Where a model came from."""

    kind: str  #: one of :data:`SOURCE_KINDS`
    name: str  #: as the user gave it
    fingerprint: str  #: changes when one of the source's files does


@dataclass(frozen=True)
class TableInfo:
    """One table of the store, `[rows, columns]`."""

    rows: int
    columns: int
    dtype: str  #: a storage dtype, see `vt_core.files.dtypes`
    checksum: str  #: of the rows in order, without padding

    @property
    def row_bytes(self) -> int:
        return self.columns * item_size(self.dtype)


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256, in hex, of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of vt.json."""

    source: SourceInfo
    model_type: str
    vocab_rows: int  #: V, rows of the vocabulary tables
    hidden: int  #: values of a row
    dtype: str  #: float type of the embedding
    tied: bool
    head_bias: bool
    #: ``embedding``, ``head`` (untied models), and where the model has them ``head_bias`` and ``per_layer``.
    #: Where layers are integers, every model has a ``head``, of int8 rows, and ``head_scales``.
    tables: dict[str, TableInfo]
    #: every file that the model needs, by its path relative to the directory
    files: dict[str, FileInfo]
    #: of the tokens that text can produce: the same for a tokenizer from GGUF and from Hugging Face
    tokenizer_digest: str
    #: how the quantized tables are packed
    quantization: dict[str, Quantization] | None = None
    #: how layers and head are stored for PyTorch's kernels, one of :data:`vt_core.files.integers.MODES`
    integers: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over the digests of all files: changes when any of them does."""
        files = json.dumps({name: info.sha256 for name, info in self.files.items()}, sort_keys=True)
        return hashlib.sha256(files.encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, path: Path) -> Manifest:
        """Parse the manifest in `path`. Raises ModelError for a missing, unknown or contradictory field."""
        values = parse_object(text, path, "manifest", ModelError)
        fields = Fields(str(path), values, ModelError, "convert the model again")
        version = fields.whole("format_version")
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version}, and this vt reads version {FORMAT_VERSION}. "
                "Convert the model again, or install the vt that wrote it."
            )
        source = fields.part("source")
        manifest = cls(
            source=SourceInfo(source.text("kind"), source.text("name"), source.text("fingerprint")),
            model_type=fields.text("model_type"),
            vocab_rows=fields.whole("vocab_rows", least=1),
            hidden=fields.whole("hidden", least=1),
            dtype=fields.text("dtype"),
            tied=fields.flag("tied"),
            head_bias=fields.flag("head_bias"),
            tables={name: _table(part) for name, part in fields.parts("tables")},
            files={
                name: FileInfo(part.whole("bytes"), part.text("sha256"))
                for name, part in fields.parts("files")
            },
            tokenizer_digest=fields.text("tokenizer_digest"),
            quantization=_quantization(fields),
            integers=None if values.get("integers") is None else fields.text("integers"),
        )
        manifest._check(path)
        return manifest

    @property
    def body_bytes(self) -> int:
        """Bytes of the weight files, which hold all tensors except the tables."""
        return sum(self.files[name].bytes for name in self.weight_files)

    @property
    def weight_files(self) -> list[str]:
        """Names of the safetensors files, in order."""
        return sorted(name for name in self.files if name.endswith(".safetensors"))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables' rows, which a framework would load."""
        return sum(table.rows * table.row_bytes for table in self.tables.values())

    def table_bytes_of(self, rows: int) -> int:
        """Bytes of `rows` rows of each table that keeps some in memory: per-layer rows are always read from
        disk, and so are embedding rows beside a head of integers.
        """
        others = (PER_LAYER, "embedding") if self.integers and self.tied else (PER_LAYER,)
        return sum(rows * table.row_bytes for name, table in self.tables.items() if name not in others)

    def _check(self, path: Path) -> None:
        if self.dtype not in FLOATS or self.source.kind not in SOURCE_KINDS:
            raise ModelError(
                f"{path}: dtype {shorten(self.dtype)} or source {shorten(self.source.kind)} is unknown. "
                "Convert the model again."
            )
        if self.integers not in (None, *MODES):
            raise ModelError(
                f"{path}: integers {shorten(self.integers)} is unknown, this vt reads {' and '.join(MODES)}. "
                "Convert the model again."
            )
        expected = {"embedding": self.hidden}
        if not self.tied or self.integers:
            expected["head"] = self.hidden
        if self.integers:
            expected["head_scales"] = 1
        if self.head_bias:
            expected["head_bias"] = 1
        if set(self.tables) - {PER_LAYER} != set(expected):
            raise ModelError(
                f"{path}: tables are {sorted(self.tables)}, a model like this has {sorted(expected)}."
            )
        for name, how in (self.quantization or {}).items():
            if name not in self.tables or self.tables[name].dtype != "uint32":
                raise ModelError(f"{path}: the table {name!r} is not packed, but quantization lists it.")
            if name == PER_LAYER:
                continue  # its width comes from config.json
            try:
                expected[name] = how.stored_columns(expected[name])
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        types = {"head": "int8", "head_scales": "float32"} if self.integers else {}
        for name, columns in expected.items():
            table = self.tables[name]
            if table.dtype != types.get(name, table.dtype):
                raise ModelError(
                    f"{path}: table {name!r} is {shorten(table.dtype)} and should be {types[name]}. Convert "
                    "the model again."
                )
            if table.rows != self.vocab_rows:
                raise ModelError(
                    f"{path}: table {name!r} has {table.rows} rows, the vocabulary {self.vocab_rows}."
                )
            if table.columns != columns:
                raise ModelError(
                    f"{path}: table {name!r} has {table.columns} columns and should have {columns}."
                )
        stored = self.files.get(STORE_FILE, FileInfo(0, "")).bytes
        if self.table_bytes > stored:  # before anything is allocated for so many rows
            raise ModelError(
                f"{path}: tables of {self.table_bytes} bytes do not fit into {STORE_FILE}, which has "
                f"{stored} bytes. Convert the model again."
            )
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
                raise ModelError(f"{path}: the file name {name!r} leads outside the directory.")


def is_older(directory: Path) -> bool:
    """Whether an older version of vt wrote a model directory, in a format that this one cannot read."""
    path = directory / MANIFEST_NAME
    try:
        fields = Fields(str(path), read_object(path, "manifest", ModelError), ModelError, "")
        return (
            fields.whole("format_version") < FORMAT_VERSION
            and fields.part("source").text("kind") in SOURCE_KINDS
        )
    except ModelError:
        return False


def describe_files(directory: Path, known: Mapping[str, str]) -> dict[str, FileInfo]:
    """Size and digest of every file below `directory`, except vt.json and LMDB's lock file.

    Args:
        known: digests that were computed while the files were written, by name.
    """
    names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    return {
        name: FileInfo((directory / name).stat().st_size, known.get(name) or file_digest(directory / name))
        for name in names
        if name not in (MANIFEST_NAME, f"{STORE_NAME}/lock.mdb")
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises ModelError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def _file(fields: Fields) -> FileInfo:
    return FileInfo(fields.whole("bytes"), fields.text("sha256"))


def _table(fields: Fields) -> TableInfo:
    return TableInfo(
        fields.whole("rows", least=1),
        fields.whole("columns", least=1),
        fields.text("dtype"),
        fields.text("checksum"),
    )


def _quantization(fields: Fields) -> dict[str, Quantization] | None:
    if fields.values.get("quantization") is None:
        return None
    tables = {
        name: (part.whole("bits"), part.whole("group_size"), part.text("dtype"), part.text("mode"))
        for name, part in fields.parts("quantization")
    }
    try:
        return {name: Quantization(*values) for name, values in tables.items()}
    except ModelError as error:
        raise ModelError(f"{fields.where}: {error}") from error
