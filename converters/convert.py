"""Converting a model: Hugging Face directory, hub id or GGUF file in, model directory out, chunk by chunk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import integers
from converters.config import written_config
from converters.directory import DirectorySource
from converters.output import check_free_space, locked, new_directory, refuse_existing
from converters.packed import packed_rows, prequantized_method
from converters.quantize import FLOAT_DTYPES, QuantizedSource, check_quantization
from converters.safetensors_io import tensor_bytes, write_file
from converters.source import Source, TensorInfo, reading
from converters.tables import Tables, find_tables
from vt_core.errors import ConfigError, ModelError, OptionError, StoreError
from vt_core.files.manifest import MANIFEST_NAME, Manifest, SourceInfo, TableInfo, describe_files
from vt_core.files.model_dir import STORE_NAME, ModelDirectory, check_path, is_model_directory
from vt_core.files.quantization import Quantization

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from vt_core.store import TableSpec

SHARD_BYTES = 2_000_000_000
#: Room for tokenizer files, whose size is known only once they are written; the largest in use take 35 MB.
TOKENIZER_BYTES = 64 << 20
#: Tables of a head that is stored as integers: the storage dtype, and where the rows come from.
_HEAD_TABLES = {"head": ("int8", integers.head_rows), "head_scales": ("float32", integers.head_scales)}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    quantize: int | str | None = None,
    group_size: int = 64,
    revision: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Convert a model into a model directory at `out`, and return its path.

    `source` is a Hugging Face directory, a hub id (`revision`: branch, tag or commit) or a GGUF file; where
    weights are to be quantized, a model directory of floats too. `dtype` is the storage dtype of all floats,
    one of FLOAT_DTYPES; None keeps what a Hugging Face model has, tensor by tensor, and takes a GGUF file's
    default. `quantize` is "int8" or "int4", which stores layers and head as PyTorch's kernels take them, or a
    number of bits, with which matrices are packed in MLX's affine format in groups of `group_size`. `out`
    appears at once and whole, or not at all. With `force` it replaces a model directory that stands there.
    Progress is shown on stderr where that is a terminal.

    Raises:
        ModelError: the source cannot be converted, `out` is taken, or the disk is full.
        OptionError: the dtype, bits or group size is none of those offered.
    """
    check_dtype(dtype)
    mode = quantize if isinstance(quantize, str) else None
    if isinstance(quantize, int):
        check_quantization(quantize, group_size)
    out = Path(out).expanduser().resolve()
    for path in (source, out):
        check_path(path)
    refuse_existing(out, force=force)
    opened = _directory_source(source) if quantize is not None else None
    opened = opened or open_source(source, revision)
    if (method := prequantized_method(opened.config)) and (dtype is not None or quantize is not None):
        option = "--dtype" if quantize is None else "--quantize"
        raise OptionError(f"{source} is quantized already ({method}) and stays as it is; leave {option} out.")
    if isinstance(quantize, int):
        opened = QuantizedSource(opened, quantize, group_size, dtype)
    with locked(out, announce=progress):
        refuse_existing(out, force=force)
        write_model(opened, out, dtype=dtype, quantize=mode, progress=progress)
    return out


def _directory_source(source: str | Path) -> Source | None:
    """The source for a model directory of vt; None for other paths and for hub ids."""
    path = Path(source).expanduser()
    with reading(source):
        return DirectorySource(ModelDirectory.open(path)) if is_model_directory(path) else None


def check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise OptionError(f"The dtype {dtype!r} is not one of {', '.join(FLOAT_DTYPES)}.")


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """The source that a path or hub id means.

    Raises:
        ModelError: it is none, or not a model that vt can convert.
        OptionError: a revision was given for a path.
    """
    from converters import hub
    from converters.gguf import GGUFSource
    from converters.huggingface import HuggingFaceSource

    path = Path(source).expanduser()
    with reading(source):
        if revision is not None and path.exists():
            raise OptionError(f"A revision ({revision}) goes with a hub id, and {source} is a path.")
        if is_model_directory(path):
            raise ModelError(f"{source} is a model directory of vt already.")
        if path.is_dir():
            return HuggingFaceSource(path)
        if path.is_file():
            return GGUFSource(path)
    if not hub.is_hub_id(str(source)):
        raise ModelError(f"{source} does not exist, and it is not a hub id (owner/model) either.")
    commit = hub.find_commit(str(source), revision)
    files = hub.download(str(source), commit)
    with reading(files):
        return HuggingFaceSource(files, name=str(source), fingerprint=commit)


def write_model(
    source: Source, out: Path, *, dtype: str | None, quantize: str | None = None, progress: bool
) -> None:
    """Write the model directory of a source to `out`, which it replaces. Call it under `locked(out)`.

    `quantize`: "int8" or "int4" stores layers and head as integers.
    """
    from tqdm import tqdm

    plan = Plan(source if quantize is None else integers.IntegerSource(source, quantize), dtype, quantize)
    check_free_space(out.parent, plan.output_bytes + TOKENIZER_BYTES)
    bar = tqdm(
        total=plan.output_bytes,
        desc=f"Converting {source.name}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
        leave=False,
    )
    with new_directory(out) as partial, bar:
        tokenizer_digest = source.write_tokenizer(partial)
        _write_json(partial / "config.json", plan.config)
        if source.generation_config is not None:
            _write_json(partial / "generation_config.json", source.generation_config)
        tables = _write_tables(plan, partial / STORE_NAME, bar)
        digests = _write_body(plan, partial, bar)
        (partial / MANIFEST_NAME).write_text(
            _manifest(plan, partial, tables, digests, tokenizer_digest).to_json(), encoding="utf-8"
        )
        _verify(partial, out)


@dataclass(frozen=True)
class Plan:
    """What a conversion will write: which tensors are tables, which the body, and in which storage dtype
    each."""

    source: Source
    dtype: str | None
    integers: str | None = None  #: how layers and head are stored as integers

    @cached_property
    def tables(self) -> Tables:
        tables = find_tables(self.source.config, self.source.tensors())
        for copy in tables.dropped:
            if not _same_values(self.source, tables, copy):
                raise ModelError(
                    f"{self.source.name}: config.json ties head and embedding, but {copy.name} and "
                    f"{tables.embedding.name} differ. Say with tie_word_embeddings there which holds."
                )
        return tables

    @cached_property
    def table_infos(self) -> dict[str, TensorInfo]:
        """What each table of floats in the store holds, by the table's name: a tensor with its float type."""
        parts = {
            "embedding": self.tables.embedding,
            "head": None if self.integers else self.tables.head,
            "head_bias": self.tables.head_bias,
            "per_layer": self.tables.per_layer,
        }
        infos = {
            name: TensorInfo(info.name, self.target(info), info.shape)
            for name, info in parts.items()
            if info is not None
        }
        for info in infos.values():
            if info.dtype not in FLOAT_DTYPES:
                raise ModelError(
                    f"{self.source.name}: the table {info.name} is {info.dtype}, which vt does not store."
                )
        return infos

    @cached_property
    def quantization(self) -> dict[str, Quantization]:
        """How the quantized ones among the tables are packed."""
        return {
            name: replace(self.tables.packed[info.name].how, dtype=info.dtype)
            for name, info in self.table_infos.items()
            if info.name in self.tables.packed
        }

    @property
    def table_names(self) -> list[str]:
        """Names of the tables in the store, in order."""
        return [*self.table_infos, *(_HEAD_TABLES if self.integers else ())]

    def table_spec(self, name: str) -> TableSpec:
        """Rows, columns and storage dtype of a table as the store will hold it."""
        from vt_core.store import TableSpec

        if self.integers and name in _HEAD_TABLES:
            dtype, _ = _HEAD_TABLES[name]
            rows, columns = self.tables.embedding.shape
            return TableSpec(name, rows, columns if name == "head" else 1, dtype)
        info = self.table_infos[name]
        columns = math.prod(info.shape[1:])
        if name in self.quantization:
            return TableSpec(name, info.shape[0], self.quantization[name].stored_columns(columns), "uint32")
        return TableSpec(name, info.shape[0], columns, info.dtype)

    def table_rows(self, name: str) -> Iterator[np.ndarray]:
        """A table's rows as the store holds them: chunks of whole rows."""
        if self.integers and name in _HEAD_TABLES:
            head = self.tables.head or self.tables.embedding
            return _HEAD_TABLES[name][1](self.source, head, self.target(head))
        return _table_rows(self.source, self.tables, self.table_infos[name])

    @cached_property
    def body(self) -> list[TensorInfo]:
        """The tensors outside the tables, with the dtypes they will have."""
        return [
            TensorInfo(info.name, self.target(info), info.shape)
            for info in self.source.tensors()
            if info.name not in self.tables.names
        ]

    @cached_property
    def config(self) -> dict[str, Any]:
        return written_config(self.source.config, tied=self.tables.tied, dtype=self.dtype)

    @property
    def output_bytes(self) -> int:
        specs = map(self.table_spec, self.table_names)
        return sum(spec.rows * spec.row_bytes for spec in specs) + sum(map(tensor_bytes, self.body))

    def target(self, info: TensorInfo) -> str:
        """The storage dtype in which a tensor will be written."""
        is_float = info.dtype in (*FLOAT_DTYPES, "float64")
        if isinstance(self.source, integers.IntegerSource) and self.source.is_part(info.name):
            return info.dtype
        return self.dtype if self.dtype is not None and is_float else info.dtype


def shards(infos: Iterable[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    """Cut tensors into runs of at most `limit` bytes (or one tensor), in order."""
    runs: list[list[TensorInfo]] = [[]]
    size = 0
    for info in infos:
        if runs[-1] and size + tensor_bytes(info) > limit:
            runs.append([])
            size = 0
        runs[-1].append(info)
        size += tensor_bytes(info)
    return runs


def _write_tables(plan: Plan, path: Path, bar: tqdm) -> dict[str, TableInfo]:
    from vt_core.store import StoreWriter

    written = {}
    with StoreWriter(path) as writer:
        for name in plan.table_names:
            spec = plan.table_spec(name)
            rows = _watched(plan.table_rows(name), bar)
            checksum = writer.add_table(spec, (chunk.reshape(-1, spec.columns) for chunk in rows))
            written[name] = TableInfo(spec.rows, spec.columns, spec.dtype, checksum)
    return written


def _write_body(plan: Plan, out: Path, bar: tqdm) -> dict[str, str]:
    """Write the weight files. Returns the SHA-256 of each by its name."""

    def chunks(info: TensorInfo) -> Iterator[np.ndarray]:
        return _watched(plan.source.chunks(info.name, info.dtype), bar)

    runs = shards(plan.body, SHARD_BYTES)
    names = shard_names(len(runs))
    digests = {
        name: write_file(out / name, infos, chunks, metadata={"format": "pt"})
        for name, infos in zip(names, runs, strict=True)
    }
    if len(runs) > 1:
        index = {
            "metadata": {"total_size": sum(map(tensor_bytes, plan.body))},
            "weight_map": {
                info.name: name for name, infos in zip(names, runs, strict=True) for info in infos
            },
        }
        _write_json(out / "model.safetensors.index.json", index)
    return digests


def shard_names(count: int) -> Sequence[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _manifest(
    plan: Plan, path: Path, tables: dict[str, TableInfo], digests: dict[str, str], tokenizer_digest: str
) -> Manifest:
    embedding = plan.table_infos["embedding"]
    rows, hidden = embedding.shape
    return Manifest(
        source=SourceInfo(plan.source.kind, plan.source.name, plan.source.fingerprint()),
        model_type=str(plan.config.get("model_type", "")),
        vocab_rows=rows,
        hidden=hidden,
        dtype=embedding.dtype,
        tied=plan.tables.tied,
        head_bias="head_bias" in tables,
        tables=tables,
        files=describe_files(path, digests),
        tokenizer_digest=tokenizer_digest,
        quantization=plan.quantization or None,
        integers=plan.integers,
    )


def _verify(path: Path, out: Path) -> None:
    try:
        ModelDirectory.open(path).verify_tables()
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), str(out))) from error
    except StoreError as error:
        raise ModelError(
            f"{out} was not written: what came back from the disk is not what was sent to it."
        ) from error


def _table_rows(source: Source, tables: Tables, info: TensorInfo) -> Iterator[np.ndarray]:
    """A table's rows as the store holds them, floats as `info` says: chunks of whole rows."""
    if info.name in tables.packed:
        return packed_rows(source, tables.packed[info.name], info.dtype)
    return source.chunks(info.name, info.dtype)


def _same_values(source: Source, tables: Tables, copy: TensorInfo) -> bool:
    digests = []
    for info in (tables.embedding, copy):
        digest = hashlib.sha256(info.dtype.encode())
        for chunk in _table_rows(source, tables, info):
            digest.update(chunk.data)
        digests.append(digest.digest())
    return digests[0] == digests[1]


def _watched(chunks: Iterable[np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield chunk
        bar.update(chunk.nbytes)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
