"""A model directory: what a conversion writes and both backends read.

```
config.json generation_config.json tokenizer.json …   as in the source
model.safetensors (or shards and their index)          every tensor except the vocabulary tables
vocab.lmdb/                                            the tables' rows
vt.json                                                the manifest, with size and digest of each file
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vt_core.errors import ConfigError, ModelError, StoreError, shorten
from vt_core.files.config_checks import check_config
from vt_core.files.json_files import read_object, read_text
from vt_core.files.manifest import MANIFEST_NAME, PER_LAYER, STORE_NAME, Manifest, file_digest
from vt_core.files.model_config import context, per_layer_shape, text_config

if TYPE_CHECKING:
    from vt_core.store import Store

__all__ = ["STORE_NAME", "ModelDirectory", "is_model_directory"]

#: Files that vt, transformers or mlx-lm read where they exist. One that was added after the conversion would
#: change the text.
OPTIONAL_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "hf_quant_config.json",
    "merges.json",
)
TEMPLATES_NAME = "additional_chat_templates"


@dataclass(frozen=True)
class ModelDirectory:
    """An open model directory. All files have the right size; no table and no weights have been read."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    name: str  #: what messages call the model

    @classmethod
    def open(cls, path: str | Path, *, name: str | None = None) -> ModelDirectory:
        """Open and check a model directory.

        Compares the size of every file, and the digest of tokenizer.json. `verify` compares all digests.

        Args:
            path: the directory.
            name: what the user gave, if it was converted to this directory. None: the path.

        Raises:
            ModelError: it is not a directory, not a model directory, has an unknown format version, or a file
                is missing, changed, or was added.
            ConfigError: config.json contradicts the manifest.
        """
        path = Path(path).expanduser()
        if not path.is_dir():
            raise ModelError(f"{path} is not a directory." if path.exists() else f"{path} does not exist.")
        if not is_model_directory(path):
            raise ModelError(
                f"{path} is not a model directory of vt: it has no {MANIFEST_NAME}, and so no digests that "
                "its files could be checked against. Make one with the convert command."
            )
        manifest = Manifest.from_json(
            read_text(path / MANIFEST_NAME, "manifest", ModelError), path=path / MANIFEST_NAME
        )
        _check_files(path, manifest)
        config = read_object(path / "config.json", "model configuration", ConfigError, strict=False)
        check_config(config, path / "config.json")
        _compare_config(path, manifest, config)
        return cls(path, manifest, config, str(path) if name is None else name)

    def renamed(self, text: str) -> str:
        """A message of a library, with the name of the model in place of the path."""
        return text.replace(str(self.path), self.name)

    @property
    def store_path(self) -> Path:
        return self.path / STORE_NAME

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def weight_paths(self) -> tuple[Path, ...]:
        """The safetensors files that the manifest lists, in order. No other file holds weights."""
        return tuple(self.path / name for name in self.manifest.weight_files)

    @property
    def generation_config(self) -> dict[str, Any]:
        """Content of generation_config.json; empty where there is none."""
        path = self.path / "generation_config.json"
        if not path.exists():
            return {}
        return read_object(path, "generation configuration", ConfigError, strict=False)

    @property
    def context(self) -> int | None:
        """Tokens that fit the model's context; None where config.json does not say."""
        return context(self.config)

    @property
    def quantization(self) -> str | None:
        """How the layers are quantized: ``int8`` or ``int4`` for PyTorch, ``4-bit affine`` (MLX's format),
        another format's name, or None.
        """
        if self.manifest.integers:
            return self.manifest.integers
        if settings := self.config.get("quantization"):
            return f"{settings['bits']}-bit {settings.get('mode') or 'affine'}"
        return self.prequantized

    @property
    def prequantized(self) -> str | None:
        """The format of layers that are quantized in the source and kept as they are (``gptq``), or None."""
        settings = self.config.get("quantization_config")
        return str(settings.get("quant_method")) if isinstance(settings, dict) else None

    def open_store(self) -> Store:
        """Open the row store and compare its tables with the manifest. Raises StoreError if they differ."""
        from vt_core.store import Store

        check_path(self.path)
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
                    f"{self.store_path} is the store of another model: the checksum of table {name!r} "
                    f"differs from {MANIFEST_NAME}. Convert the model again."
                )

    def verify(self) -> None:
        """Read every file and compare its digest. Raises ModelError if one differs."""
        self.open_store().close()
        for name, info in self.manifest.files.items():
            _check_digest(self.path / name, info.sha256)

    def verify_tables(self) -> None:
        """Read every table through the store and compare its checksum. Raises StoreError if one differs."""
        with self.open_store() as store:
            for name, table in self.manifest.tables.items():
                if store.tables[name].checksum() != table.checksum:
                    raise StoreError(
                        f"{self.store_path}: table {name!r} has changed since it was written: its checksum "
                        "differs. Convert the model again."
                    )


def check_path(path: str | Path) -> None:
    """Check that a path is UTF-8: LMDB, safetensors and MLX open no other.

    Raises:
        ModelError: it is not.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelError(
            f"{path}: the path of a model must be UTF-8; rename it, or make a link to it."
        ) from error


def is_model_directory(path: str | Path) -> bool:
    """Whether `path` was written by a conversion, complete or not."""
    return (Path(path) / MANIFEST_NAME).is_file()


def _compare_config(path: Path, manifest: Manifest, config: dict[str, Any]) -> None:
    """Raise ConfigError where config.json contradicts the manifest."""
    rows = text_config(config).get("vocab_size", manifest.vocab_rows)
    settings = config.get("quantization")
    described = isinstance(settings, dict) and {"bits", "group_size"} <= settings.keys()
    per_layer = manifest.tables.get(PER_LAYER)
    shape = per_layer_shape(config, (manifest.quantization or {}).get(PER_LAYER))
    if str(config.get("model_type", "")) != manifest.model_type:
        fault = (
            f"config.json says model_type {shorten(config.get('model_type'))}, {MANIFEST_NAME} says "
            f"{shorten(manifest.model_type)}"
        )
    elif rows != manifest.vocab_rows:
        fault = f"config.json says vocab_size {shorten(rows)}, the tables have {manifest.vocab_rows} rows"
    elif settings and not described:
        fault = "quantization in config.json does not give bits and group_size"
    elif shape != (per_layer and (per_layer.rows, per_layer.columns)):
        fault = f"{MANIFEST_NAME} and config.json describe different per-layer tables"
    else:
        return
    raise ConfigError(f"{path}: {fault}. Convert the model again.")


def _check_files(path: Path, manifest: Manifest) -> None:
    for name, info in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ModelError(f"{path} is incomplete: {name} is missing. Convert the model again.")
        size = file.stat().st_size
        if size != info.bytes:
            raise ModelError(
                f"{file} has {size} bytes and should have {info.bytes}. Convert the model again."
            )
        if name == "tokenizer.json":
            _check_digest(file, info.sha256)
    templates = (file.relative_to(path).as_posix() for file in path.glob(f"{TEMPLATES_NAME}/*"))
    for name in (*OPTIONAL_FILES, *templates):
        if name not in manifest.files and (path / name).exists():
            raise ModelError(
                f"{path / name} was added after the conversion. Remove it, or add it to the source and "
                "convert the model again."
            )


def _check_digest(file: Path, sha256: str) -> None:
    if file_digest(file) != sha256:
        raise ModelError(
            f"{file} has changed since the conversion: its SHA-256 differs from the one in {MANIFEST_NAME}. "
            "Convert the model again."
        )
