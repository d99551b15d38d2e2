"""A model directory written back as a plain Hugging Face one, tables included: what stock frameworks load."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.cache import cache_directory
from converters.output import check_free_space, locked, new_directory
from converters.safetensors_io import read_chunks, read_header, write_file
from converters.source import CHUNK_BYTES, TensorInfo
from vt_core.errors import ModelError
from vt_core.files.architectures import PER_LAYER_MODULE, architecture
from vt_core.files.manifest import MANIFEST_NAME, Manifest
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import Quantization

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
#: What models call the list of their layers.
_LAYERS = ("layers.", "h.")


def stock_copy(directory: ModelDirectory) -> Path:
    """The plain copy of a model directory in the user's cache, written the first time it is asked for.

    Raises:
        ModelError: it cannot be written.
    """
    digest = hashlib.sha256((directory.path / MANIFEST_NAME).read_bytes()).hexdigest()[:16]
    out = cache_directory() / "stock" / f"{directory.path.resolve().name}-{digest}"
    if not (out / WEIGHTS_NAME).is_file():
        with locked(out, announce=True):
            if not (out / WEIGHTS_NAME).is_file():
                export(directory, out)
    return out


def export(directory: ModelDirectory, out: Path) -> None:
    """Write a plain Hugging Face directory to `out`, whole or not at all; call it under `locked(out)`.

    Raises:
        ModelError: that cannot be done.
    """
    manifest = directory.manifest
    bodies = {
        name: (path, entry) for path in directory.weight_paths for name, entry in read_header(path).items()
    }
    names = table_names(manifest.model_type, bodies)
    tables = {
        part.info.name: part for table in manifest.tables for part in _parts(names[table], table, manifest)
    }
    check_free_space(out.parent, manifest.total_bytes)
    with directory.open_store() as store, new_directory(out) as partial:

        def chunks(info: TensorInfo) -> Iterator[np.ndarray]:
            import numpy as np

            if info.name in tables:
                part = tables[info.name]
                return (np.ascontiguousarray(part.of(tile.rows)) for tile in store.tables[part.table].tiles())
            return read_chunks(*bodies[info.name], CHUNK_BYTES)

        for name in manifest.files:
            if Path(name).suffix in (".json", ".jinja") and name != _INDEX_NAME:
                shutil.copyfile(directory.path / name, partial / name)
        everything = [part.info for part in tables.values()]
        everything += [entry.info for _, entry in bodies.values()]
        write_file(partial / WEIGHTS_NAME, everything, chunks, {"format": "pt"})


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
