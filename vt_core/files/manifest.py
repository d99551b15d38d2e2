"""The manifest of a model directory, vt.json: where it came from, its tables, and the length of each file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from vt_core.errors import ModelError
from vt_core.files.json_files import Fields, parse_object
from vt_core.files.quantization import Quantization

MANIFEST_NAME = "vt.json"
FORMAT_VERSION = 1
#: Name of the table in which the layers look every token up, where there is one.
PER_LAYER = "per_layer"


@dataclass(frozen=True)
class SourceInfo:
    """Where a model came from: "huggingface" or "gguf", the name that the user gave, the source's
    fingerprint."""

    kind: str
    name: str
    fingerprint: str


@dataclass(frozen=True)
class TableInfo:
    """One table of the store, `[rows, columns]` of a storage dtype; `checksum` is over its bytes in row
    order."""

    rows: int
    columns: int
    dtype: str
    checksum: str

    @property
    def row_bytes(self) -> int:
        from vt_core.files import dtypes

        return self.columns * dtypes.item_size(self.dtype)


@dataclass(frozen=True)
class Manifest:
    """Content of vt.json. `vocab_rows` is V, `hidden` the width of a row, `dtype` the embedding's float type.

    `tables` holds "embedding", "head" where untied, "head_bias" (one column) where the head has one, and
    "per_layer", of a shape of its own, where the layers look tokens up as well; `quantization` says how those
    of them that are quantized are packed; `files` gives the length in bytes of every file that the model
    needs, by its path relative to the directory.
    """

    source: SourceInfo
    model_type: str
    vocab_rows: int
    hidden: int
    dtype: str
    tied: bool
    head_bias: bool
    tables: dict[str, TableInfo]
    files: dict[str, int]
    tokenizer_digest: str
    quantization: dict[str, Quantization] | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, path: Path) -> Manifest:
        """Parse a manifest; `path` is named in the ModelError that anything missing, foreign or contradictory
        raises."""
        values = parse_object(text, path, "manifest", ModelError)
        fields = Fields(str(path), values, ModelError, "convert the model again")
        version = fields.whole("format_version")
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has the format version {version}, this vt reads version {FORMAT_VERSION}. "
                "Convert the model again, or install the vt that wrote it."
            )
        source, files = fields.part("source"), fields.part("files")
        manifest = cls(
            source=SourceInfo(source.text("kind"), source.text("name"), source.text("fingerprint")),
            model_type=fields.text("model_type"),
            vocab_rows=fields.whole("vocab_rows", least=1),
            hidden=fields.whole("hidden", least=1),
            dtype=fields.text("dtype"),
            tied=fields.flag("tied"),
            head_bias=fields.flag("head_bias"),
            tables={name: _table(part) for name, part in fields.parts("tables")},
            files={name: files.whole(name) for name in files.values},
            tokenizer_digest=fields.text("tokenizer_digest"),
            quantization=_quantization(fields),
        )
        manifest._check(path)
        return manifest

    @property
    def body_bytes(self) -> int:
        """Bytes of the tensors outside the tables, headers included."""
        return sum(size for name, size in self.files.items() if name.endswith(".safetensors"))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables' values: what a framework would load."""
        return sum(table.rows * table.row_bytes for table in self.tables.values())

    def table_bytes_of(self, rows: int) -> int:
        """Bytes that `rows` active rows of every table take; no rows of the layers' table ever stay."""
        return sum(rows * table.row_bytes for name, table in self.tables.items() if name != PER_LAYER)

    def _check(self, path: Path) -> None:
        expected = {"embedding": self.hidden}
        if not self.tied:
            expected["head"] = self.hidden
        if self.head_bias:
            expected["head_bias"] = 1
        if set(self.tables) - {PER_LAYER} != set(expected):
            raise ModelError(
                f"{path}: tables are {sorted(self.tables)}, a model like this has {sorted(expected)}."
            )
        for name, how in (self.quantization or {}).items():
            if name not in self.tables or self.tables[name].dtype != "uint32":
                raise ModelError(f"{path}: the table {name!r} cannot be quantized as quantization says.")
            if name == PER_LAYER:
                continue  # how wide its rows are, config.json says
            try:
                expected[name] = how.columns(expected[name])
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        for name, columns in expected.items():
            table = self.tables[name]
            if table.rows != self.vocab_rows:
                raise ModelError(
                    f"{path}: table {name!r} has {table.rows} rows, the vocabulary {self.vocab_rows}."
                )
            if table.columns != columns:
                raise ModelError(
                    f"{path}: table {name!r} has {table.columns} columns and should have {columns}."
                )
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
                raise ModelError(f"{path}: the file name {name!r} leads outside the directory.")


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
