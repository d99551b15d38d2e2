"""A model directory of vt as a source: to convert it once more, or to write it back for stock frameworks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.huggingface import INDEX_NAME, converted_chunks
from converters.safetensors_io import read_header
from converters.source import CHUNK_BYTES, TensorInfo
from vt_core.errors import ModelError
from vt_core.files.architectures import PER_LAYER_MODULE, architecture
from vt_core.files.manifest import Manifest
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import Quantization

if TYPE_CHECKING:
    import numpy as np

#: What models call the list of their layers.
_LAYERS = ("layers.", "h.")
_CONFIGS = ("config.json", "generation_config.json", INDEX_NAME)


class DirectorySource:
    """The tensors of a model directory, by their Hugging Face names. A :class:`converters.source.Source`."""

    def __init__(self, directory: ModelDirectory) -> None:
        """
        Raises:
            ModelError: the tensors have names that vt does not know, or the head is stored as integers only.
        """
        manifest = directory.manifest
        if manifest.integers:
            raise ModelError(
                f"{directory.name} is quantized ({manifest.integers}), which only vt-torch reads; use the "
                "original weights."
            )
        self.directory = directory
        self.kind, self.name, self.default_dtype = manifest.source.kind, manifest.source.name, manifest.dtype
        self.config: dict[str, Any] = directory.config
        self.generation_config: dict[str, Any] | None = (
            directory.generation_config if "generation_config.json" in manifest.files else None
        )
        self._bodies = {
            name: (path, entry)
            for path in directory.weight_paths
            for name, entry in read_header(path).items()
        }
        names = table_names(manifest.model_type, self._bodies)
        self._tables = {
            part.info.name: part
            for table in manifest.tables
            for part in _parts(names[table], table, manifest)
        }

    def fingerprint(self) -> str:
        return self.directory.manifest.source.fingerprint

    def tensors(self) -> list[TensorInfo]:
        tables = [part.info for part in self._tables.values()]
        return tables + [entry.info for _, entry in self._bodies.values()]

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        from vt_core.files.dtypes import convert

        if name in self._bodies:
            return converted_chunks(*self._bodies[name], dtype)
        part = self._tables[name]
        return (convert(rows, part.info.dtype, dtype) for rows in self._rows(part))

    def write_tokenizer(self, out: Path) -> str:
        manifest = self.directory.manifest
        for name in manifest.files:
            if Path(name).suffix in (".json", ".jinja") and name not in _CONFIGS:
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.directory.path / name, out / name)
        return manifest.tokenizer_digest

    def _rows(self, part: _Part) -> Iterator[np.ndarray]:
        import numpy as np

        with self.directory.open_store() as store:
            for tile in store.tables[part.table].tiles(CHUNK_BYTES):
                yield np.ascontiguousarray(part.of(tile.rows))


@dataclass(frozen=True)
class _Part:
    """A tensor that a table becomes: all of it, or of a packed one words, scales or biases."""

    info: TensorInfo
    table: str
    how: Quantization | None
    place: int

    def of(self, rows: np.ndarray) -> np.ndarray:
        from vt_core.files.packing import split_rows

        return rows if self.how is None else split_rows(rows, self.how)[self.place]


def _parts(name: str, table: str, manifest: Manifest) -> Iterator[_Part]:
    info = manifest.tables[table]
    how = (manifest.quantization or {}).get(table)
    if how is None:
        shape = (info.rows,) if table == "head_bias" else (info.rows, info.columns)
        yield _Part(TensorInfo(name, info.dtype, shape), table, None, 0)
        return
    values = how.row_values(info.columns)
    columns = (how.words_per_row(values), how.groups_per_row(values), how.groups_per_row(values))
    for place, kind in enumerate(("weight", "scales", "biases")):
        part = f"{name.removesuffix('weight')}{kind}"
        dtype = how.dtype if place else info.dtype
        yield _Part(TensorInfo(part, dtype, (info.rows, columns[place])), table, how, place)


def table_names(model_type: str, body: Iterable[str]) -> dict[str, str]:
    """Hugging Face names of the tables "embedding", "head", "head_bias" and "per_layer".

    Args:
        body: names of the other tensors, whose prefix the embedding's name has too.

    Raises:
        ModelError: the other tensors have names that vt does not know.
    """
    body, row = list(body), architecture(model_type)
    fitting = [
        name
        for name in row.embedding
        if any(tensor.startswith(f"{_parent(name)}{layers}") for tensor in body for layers in _LAYERS)
    ]
    if not fitting:
        raise ModelError(f"The tensors of a {model_type} have names that vt cannot write back.")
    embedding, head = max(fitting, key=lambda name: len(_parent(name))), row.head[0]
    return {
        "embedding": f"{embedding}.weight",
        "head": f"{head}.weight",
        "head_bias": f"{head}.bias",
        "per_layer": f"{_parent(embedding)}{PER_LAYER_MODULE}.weight",
    }


def _parent(name: str) -> str:
    """Prefix of a tensor's name, with the final dot."""
    return name.removesuffix(name.rpartition(".")[2])
