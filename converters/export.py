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
from vt_core.files.manifest import MANIFEST_NAME, Manifest
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.quantization import Quantization

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"

#: The embedding's name by how the names of the layers begin; the first that fits holds.
_EMBEDDINGS = (
    ("model.language_model.", "model.language_model.embed_tokens.weight"),
    ("language_model.model.", "language_model.model.embed_tokens.weight"),
    ("model.text_model.", "model.text_model.embed_tokens.weight"),
    ("model.decoder.", "model.decoder.embed_tokens.weight"),
    ("decoder.", "decoder.embed_tokens.weight"),
    ("gpt_neox.", "gpt_neox.embed_in.weight"),
    ("backbone.", "backbone.embeddings.weight"),
    ("transformer.h.", "transformer.wte.weight"),
    ("h.", "wte.weight"),
    ("layers.", "embed_tokens.weight"),
    ("model.", "model.embed_tokens.weight"),
)
#: What some model types call the last part of it, and their heads.
_EMBEDDING_WORDS = {
    "falcon": "word_embeddings",
    "bloom": "word_embeddings",
    "internlm2": "tok_embeddings",
    "bailing_moe": "word_embeddings",
}
_HEADS = {"gpt_neox": "embed_out", "internlm2": "output"}


def stock_copy(directory: ModelDirectory) -> Path:
    """The plain copy of a model directory in the user's cache, written the first time it is asked for.

    Raises ModelError where it cannot be written.
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

    Raises ModelError where that cannot be done.
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
        from vt_core.files.packing import split

        return rows if self.how is None else split(rows, self.how)[self.place]


def _parts(name: str, table: str, manifest: Manifest) -> Iterator[_Part]:
    info = manifest.tables[table]
    how = (manifest.quantization or {}).get(table)
    if how is None:
        shape = (info.rows,) if table == "head_bias" else (info.rows, info.columns)
        yield _Part(TensorInfo(name, info.dtype, shape), table, None, 0)
        return
    values = how.values(info.columns)
    columns = (how.words(values), how.groups(values), how.groups(values))
    for place, kind in enumerate(("weight", "scales", "biases")):
        part = f"{name.removesuffix('weight')}{kind}"
        dtype = how.dtype if place else info.dtype
        yield _Part(TensorInfo(part, dtype, (info.rows, columns[place])), table, how, place)


def table_names(model_type: str, body: Iterable[str]) -> dict[str, str]:
    """Hugging Face names of the tables "embedding", "head", "head_bias" and "per_layer" beside tensors of
    these names.

    Raises ModelError where the names are of no layout that vt knows.
    """
    body = list(body)
    fitting = (
        embedding for prefix, embedding in _EMBEDDINGS if any(name.startswith(prefix) for name in body)
    )
    embedding = next(fitting, None)
    if embedding is None:
        raise ModelError(f"The tensors of a {model_type} are named in a way that vt cannot write back.")
    if word := _EMBEDDING_WORDS.get(model_type):
        parent = embedding.removesuffix(".weight").rpartition(".")[0]
        embedding = ".".join(filter(None, (parent, word, "weight")))
    head = _HEADS.get(model_type, "lm_head")
    return {
        "embedding": embedding,
        "head": f"{head}.weight",
        "head_bias": f"{head}.bias",
        "per_layer": f"{embedding.removesuffix('.weight')}_per_layer.weight",
    }
