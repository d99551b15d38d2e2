"""A model directory: what a conversion writes and both backends read.

```
config.json generation_config.json tokenizer.json …   as in the source
model.safetensors (or shards and their index)          every tensor except the vocabulary tables
vocab.lmdb/                                            the tables' rows
vt.json                                                the manifest: what the rest is, and each file's length
```
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vt_core.errors import ModelError, StoreError
from vt_core.model_config import context, per_layer_shape, text_config
from vt_core.quantisation import Quantisation

if TYPE_CHECKING:
    from vt_core.store import Store

MANIFEST_NAME = "vt.json"
STORE_NAME = "vocab.lmdb"
PER_LAYER = "per_layer"
FORMAT_VERSION = 1
MAX_JSON_BYTES = 64 << 20
"""Far above any config or index file: what is larger is another file under its name."""


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
        from vt_core import dtypes

        return self.columns * dtypes.item_size(self.dtype)


@dataclass(frozen=True)
class Manifest:
    """Content of vt.json. `vocab_rows` is V, `hidden` the width of a row, `dtype` the embedding's float type.

    `tables` holds "embedding", "head" where untied, "head_bias" (one column) where the head has one, and
    "per_layer", of a shape of its own, where the layers look tokens up as well; `quantization` says how those
    of them that are quantised are packed; `files` gives the length in bytes of every file that the model
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
    quantization: dict[str, Quantisation] | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, path: Path) -> Manifest:
        """Parse a manifest; `path` is named in the ModelError that anything missing, foreign or contradictory
        raises."""
        fields = _Fields(path, _parse_object(path, text))
        version = fields.whole("format_version")
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has the format version {version}, this vt reads version {FORMAT_VERSION}. "
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
            files=fields.sizes("files"),
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
                raise ModelError(f"{path}: the table {name!r} cannot be quantised as quantization says.")
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


@dataclass(frozen=True)
class ModelDirectory:
    """An opened model directory: its files are there and whole. No byte of a table has been read."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        """Open and check a model directory.

        Raises ModelError when it is no directory or not of this package, of an unknown format version, or
        when a file is missing or not as long as it was when written.
        """
        path = Path(path).expanduser()
        if not path.is_dir():
            raise ModelError(f"{path} is not a directory." if path.exists() else f"{path} does not exist.")
        if not is_model_directory(path):
            raise ModelError(
                f"{path} is not a model directory of vt: it holds no {MANIFEST_NAME}. "
                "Make one with the convert command."
            )
        manifest = Manifest.from_json(_read_text(path / MANIFEST_NAME), path=path / MANIFEST_NAME)
        _check_files(path, manifest.files)
        config = read_json_object(path / "config.json")
        rows = text_config(config).get("vocab_size", manifest.vocab_rows)
        if rows != manifest.vocab_rows:
            raise ModelError(
                f"{path}: config.json says vocab_size {rows}, the tables have {manifest.vocab_rows} rows. "
                "Convert the model again."
            )
        settings = config.get("quantization")
        if settings and not (isinstance(settings, dict) and {"bits", "group_size"} <= settings.keys()):
            raise ModelError(
                f"{path}: quantization in config.json does not give bits and group_size. "
                "Convert the model again."
            )
        per_layer = manifest.tables.get(PER_LAYER)
        shape = per_layer_shape(config, (manifest.quantization or {}).get(PER_LAYER))
        if shape != (per_layer and (per_layer.rows, per_layer.columns)):
            raise ModelError(
                f"{path}: vt.json and config.json describe different tables for the layers. "
                "Convert the model again."
            )
        return cls(path, manifest, config)

    @property
    def store_path(self) -> Path:
        return self.path / STORE_NAME

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def weight_paths(self) -> tuple[Path, ...]:
        """The safetensors files of the body, in order."""
        return tuple(
            self.path / name for name in sorted(self.manifest.files) if name.endswith(".safetensors")
        )

    @property
    def generation_config(self) -> dict[str, Any]:
        """Content of generation_config.json; empty where there is none."""
        path = self.path / "generation_config.json"
        return read_json_object(path) if path.exists() else {}

    @property
    def context(self) -> int | None:
        """Tokens that fit the model's context, where its configuration says so."""
        return context(self.config)

    @property
    def quantization(self) -> str | None:
        """How the layers came quantised: ``4-bit affine`` (MLX's format), another layout's name, or None."""
        if settings := self.config.get("quantization"):
            return f"{settings['bits']}-bit {settings.get('mode') or 'affine'}"
        return self.carried

    @property
    def carried(self) -> str | None:
        """The layout of layers that came quantised and were converted as they are (GPTQ), if they did."""
        settings = self.config.get("quantization_config")
        return str(settings.get("quant_method")) if isinstance(settings, dict) else None

    def open_store(self) -> Store:
        """Open the row store and check its tables against the manifest. Raises StoreError where they
        differ."""
        from vt_core.store import Store

        store = Store.open(self.store_path)
        try:
            self._check_store(store)
        except BaseException:
            store.close()
            raise
        return store

    def _check_store(self, store: Store) -> None:
        for name, table in self.manifest.tables.items():
            if name not in store.tables:
                raise StoreError(f"{self.store_path} has no table {name!r}. Convert the model again.")
            spec = store.tables[name].spec
            if (spec.rows, spec.columns, spec.dtype) != (table.rows, table.columns, table.dtype):
                raise StoreError(
                    f"{self.store_path}: table {name!r} is {spec.rows} x {spec.columns} {spec.dtype}, "
                    f"{MANIFEST_NAME} says {table.rows} x {table.columns} {table.dtype}. "
                    "Convert the model again."
                )
            if store.tables[name].stored_checksum != table.checksum:
                raise StoreError(
                    f"{self.store_path} is the store of another model: table {name!r} has another "
                    f"checksum than "
                    f"{MANIFEST_NAME} says. Convert the model again."
                )

    def verify(self) -> None:
        """Read every table and compare its checksum with the manifest's. Raises StoreError where one
        differs."""
        with self.open_store() as store:
            for name, table in self.manifest.tables.items():
                if store.tables[name].checksum() != table.checksum:
                    raise StoreError(
                        f"{self.store_path}: table {name!r} is not what was written: its checksum differs. "
                        "Convert the model again."
                    )


def is_model_directory(path: str | Path) -> bool:
    """Whether `path` is a directory that a conversion wrote, whole or not."""
    return (Path(path) / MANIFEST_NAME).is_file()


def read_json_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object. Raises ModelError, which names the file."""
    return _parse_object(path, _read_text(path))


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size} bytes, which is too many for a file of its kind.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text.") from error


def _parse_object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return value


def _check_files(path: Path, files: dict[str, int]) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ModelError(f"{path} is incomplete: {name} is missing. Convert the model again.")
        if file.stat().st_size != expected:
            raise ModelError(
                f"{file} has {file.stat().st_size} bytes and should have {expected}. Convert the model again."
            )


def _table(fields: _Fields) -> TableInfo:
    return TableInfo(
        fields.whole("rows", least=1),
        fields.whole("columns", least=1),
        fields.text("dtype"),
        fields.text("checksum"),
    )


def _quantization(fields: _Fields) -> dict[str, Quantisation] | None:
    if fields.values.get("quantization") is None:
        return None
    tables = {
        name: (part.whole("bits"), part.whole("group_size"), part.text("dtype"), part.text("mode"))
        for name, part in fields.parts("quantization")
    }
    try:
        return {name: Quantisation(*values) for name, values in tables.items()}
    except ModelError as error:
        raise ModelError(f"{fields.path}: {error}") from error


@dataclass(frozen=True)
class _Fields:
    """The fields of a JSON object, each checked as it is read."""

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def whole(self, name: str, least: int = 0) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            raise self._wrong(name, f"a whole number from {least}")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def part(self, name: str) -> _Fields:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return _Fields(self.path, value, f"{self.prefix}{name}.")

    def parts(self, name: str) -> list[tuple[str, _Fields]]:
        part = self.part(name)
        return [(key, part.part(key)) for key in part.values]

    def sizes(self, name: str) -> dict[str, int]:
        part = self.part(name)
        return {key: part.whole(key) for key in part.values}

    def _wrong(self, name: str, expected: str) -> ModelError:
        return ModelError(
            f"{self.path}: {self.prefix}{name} is {self.values.get(name)!r} and should be {expected}. "
            "Convert the model again."
        )
