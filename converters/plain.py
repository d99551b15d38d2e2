"""Writing plain Hugging Face directories from others: more rows in the tables, or trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.cache import open_model
from converters.config import written_config
from converters.convert import TOKENIZER_BYTES, open_source
from converters.export import WEIGHTS_NAME, stock_copy
from converters.huggingface import HuggingFaceSource
from converters.output import check_free_space, locked, new_directory, refuse_existing
from converters.packed import quantized_method
from converters.safetensors_io import tensor_bytes, write_file
from converters.source import TensorInfo
from converters.tables import Tables, find_tables
from vt_core.errors import ModelError
from vt_core.files.json_files import write_json
from vt_core.files.model_config import text_config
from vt_core.files.model_dir import is_model_directory

if TYPE_CHECKING:
    import numpy as np

    from vt_core.enrich.training import Trained
    from vt_core.files.adapters import LowRank

Chunks = Iterator["np.ndarray"]
#: Turns the chunks of a tensor, `[rows, columns]` in its storage dtype, into those to write.
Edit = Callable[[TensorInfo, Chunks], Chunks]


def plain_model(
    model: str | Path | None, *, revision: str | None = None, progress: bool = True
) -> PlainModel:
    """The plain Hugging Face directory of a model. A GGUF file or a model directory is written as one into
    the user's cache.

    Raises:
        ModelError: there is no such model, or it is quantized.
        OptionError: a revision was given for a path.
    """
    path = None if model is None else Path(model).expanduser()
    if path is None or path.is_file() or is_model_directory(path):
        directory = open_model(model, revision=revision, progress=progress)
        _refuse_quantized(directory.manifest.source.name, directory.config)
        return PlainModel(HuggingFaceSource(stock_copy(directory), name=directory.manifest.source.name))
    source = open_source(str(model), revision)
    assert isinstance(source, HuggingFaceSource)
    _refuse_quantized(source.name, source.config)
    return PlainModel(source)


class PlainModel:
    """A Hugging Face directory with float weights, and what may be changed while it is copied."""

    def __init__(self, source: HuggingFaceSource) -> None:
        self.path = source.path
        self.name = source.name
        self.config = source.config
        self._source = source
        self._tables = find_tables(source.config, source.tensors())

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one."""
        return self._tables.tied

    @property
    def rows(self) -> int:
        """Rows of the tables."""
        return self._tables.embedding.shape[0]

    def fingerprint(self) -> str:
        """Changes when one of the model's files does."""
        return self._source.fingerprint()

    def check_growth(self) -> None:
        """Raise ModelError for a model whose tables cannot get more rows."""
        if self._tables.per_layer is not None:
            raise ModelError(
                f"{self.name}: its layers have a vocabulary table of their own "
                f"({self._tables.per_layer.name}), to which vt does not add rows."
            )

    def rows_scale(self, ids: Collection[int]) -> float:
        """Root mean square of some rows; of embedding and head, that of the table where it is smaller."""
        import numpy as np

        from vt_core.files.dtypes import to_float32

        def scale(info: TensorInfo) -> float:
            wanted, total, start = np.array(sorted(ids)), 0.0, 0
            for chunk in self._source.chunks(info.name, info.dtype):
                inside = wanted[(wanted >= start) & (wanted < start + len(chunk))]
                total += float((to_float32(chunk[inside - start], info.dtype) ** 2).sum())
                start += len(chunk)
            return math.sqrt(total / (len(wanted) * info.shape[1]))

        tables = (self._tables.embedding, self._tables.head)
        return min(scale(info) for info in tables if info is not None)

    def write_with_rows(
        self, out: Path, parts: Mapping[int, tuple[int, ...]], write_tokenizer: Callable[[Path], object]
    ) -> None:
        """Write a copy whose tables have rows for new tokens: the mean of the rows of each one's parts.

        Rows after the last token of the model are used first. Added rows without a token repeat the last row.

        Args:
            parts: the tokens that each new one stands for, all before it.
            write_tokenizer: writes `tokenizer.json` into a directory.

        Raises:
            ModelError: `out` is taken, or writing failed.
        """
        rows = max(self.rows, 1 + max(parts, default=-1))
        names = {info.name for info in _tables(self._tables)}
        config = written_config(self.config, tied=self.tied, dtype=None)
        for part in (config, text_config(config)):
            if "vocab_size" in part or part is text_config(config):
                part["vocab_size"] = rows

        def shape(info: TensorInfo) -> TensorInfo:
            grown = (rows, *info.shape[1:]) if info.name in names else info.shape
            return TensorInfo(info.name, info.dtype, grown)

        def edit(info: TensorInfo, chunks: Chunks) -> Chunks:
            return with_mean_rows(chunks, info.dtype, rows, parts) if info.name in names else chunks

        self._write(out, config, shape, edit, write_tokenizer)

    def write_trained(
        self,
        out: Path,
        trained: Trained,
        new_ids: Sequence[int],
        write_more: Callable[[Path], object] = lambda out: None,
    ) -> None:
        """Write a copy with trained weights.

        Args:
            new_ids: the ids of `trained.rows`.
            write_more: writes more files into the directory.

        Raises:
            ModelError: `out` is taken, a trained layer is not in the model, or writing failed.
        """
        if trained.weights is not None:
            weights = HuggingFaceSource(trained.weights)
            edit: Edit = lambda info, chunks: weights.chunks(info.name, info.dtype)  # noqa: E731
        else:
            tables = {self._tables.embedding.name: "embedding"}
            if self._tables.head is not None:
                tables[self._tables.head.name] = "head"
            rows = {name: trained.rows[table] for name, table in tables.items() if table in trained.rows}
            names = {info.name for info in self._source.tensors()}
            edit = _edit_trained(trained.layers, rows, new_ids, names)
        config = written_config(self.config, tied=self.tied, dtype=None)
        self._write(out, config, lambda info: info, edit, write_more)

    def _write(
        self,
        out: Path,
        config: dict[str, Any],
        shape: Callable[[TensorInfo], TensorInfo],
        edit: Edit,
        write_more: Callable[[Path], object],
    ) -> None:
        dropped = {info.name for info in self._tables.dropped}
        infos = {info.name: info for info in self._source.tensors() if info.name not in dropped}

        def chunks(info: TensorInfo) -> Chunks:
            return edit(info, self._source.chunks(info.name, info.dtype))

        refuse_existing(out, force=False)
        written = [shape(info) for info in infos.values()]
        with locked(out, announce=True):
            check_free_space(out.parent, sum(map(tensor_bytes, written)) + TOKENIZER_BYTES)
            with new_directory(out) as partial:
                self._source.write_tokenizer(partial)
                write_more(partial)
                write_json(partial / "config.json", config, ModelError)
                if self._source.generation_config is not None:
                    write_json(partial / "generation_config.json", self._source.generation_config, ModelError)
                write_file(partial / WEIGHTS_NAME, written, chunks, {"format": "pt"})


def with_mean_rows(
    chunks: Chunks, dtype: str, rows: int, parts: Mapping[int, tuple[int, ...]]
) -> Iterator[np.ndarray]:
    """A table with new rows: see `PlainModel.write_with_rows`."""
    import numpy as np

    from vt_core.files.dtypes import from_float32, to_float32

    wanted = np.unique([part for ids in parts.values() for part in ids]).astype(np.int64)
    known: dict[int, np.ndarray] = {}

    def mean(ids: tuple[int, ...]) -> np.ndarray:
        values = np.mean([known[id] for id in ids], axis=0, dtype=np.float32)
        return from_float32(np.asarray(values, np.float32), dtype)

    start = 0
    for chunk in chunks:
        end = start + len(chunk)
        inside = wanted[(wanted >= start) & (wanted < end)]
        known |= dict(zip(inside.tolist(), to_float32(chunk[inside - start], dtype), strict=True))
        last = chunk[-1:].copy()
        for id, ids in parts.items():
            if start <= id < end:
                chunk[id - start] = mean(ids)
        yield chunk
        start = end
    if start < rows:
        added = np.repeat(last, rows - start, axis=0)
        for id, ids in parts.items():
            if id >= start:
                added[id - start] = mean(ids)
        yield added


def _edit_trained(
    layers: Sequence[LowRank],
    rows: Mapping[str, np.ndarray],
    new_ids: Sequence[int],
    names: Collection[str],
) -> Edit:
    """Adds low-rank parts to the weights of layers, and replaces rows of tables. Computed in float32."""
    from vt_core.files.dtypes import from_float32, to_float32

    parts = {f"{layer.module}.weight": layer for layer in layers}
    for name, layer in parts.items():
        if name not in names:
            raise layer.missing()

    def edit(info: TensorInfo, chunks: Chunks) -> Chunks:
        start = 0
        for chunk in chunks:
            if info.name in parts:
                layer = parts[info.name]
                layer.check(*info.shape)
                delta = layer.scale * (layer.b[start : start + len(chunk)] @ layer.a)
                chunk = from_float32(to_float32(chunk, info.dtype) + delta, info.dtype)
            if info.name in rows:
                for id, row in zip(new_ids, rows[info.name], strict=True):
                    if start <= id < start + len(chunk):
                        chunk[id - start] = from_float32(row, info.dtype)
            start += len(chunk)
            yield chunk

    return edit


def _tables(tables: Tables) -> list[TensorInfo]:
    parts = (tables.embedding, tables.head, tables.head_bias)
    return [part for part in parts if part is not None]


def _refuse_quantized(name: str, config: Mapping[str, Any]) -> None:
    if method := quantized_method(dict(config)):
        raise ModelError(
            f"{name} is quantized ({method}). Use the original weights here, and quantize the result with "
            "convert."
        )
