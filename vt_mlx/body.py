"""The model's body: mlx-lm's own classes, loaded without the vocabulary tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes, load_model

from vt_core.errors import ModelError
from vt_core.files.architectures import EMBEDDING_MODULES, HEAD_MODULES, PER_LAYER_MODULE
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tensor_names import check_tensor_names
from vt_core.vocab.heads import Head
from vt_mlx.rows import PackedMatrix

_PROBE_COLUMNS = 8


class RowEmbedding(nn.Module):
    """Replaces the embedding: looks ids up in a table that the decoder sets before each call.

    Tied models call :meth:`as_linear` for their logits.
    """

    def __init__(self, head: RowHead) -> None:
        super().__init__()
        # Names with an underscore are not parameters.
        self._head = head
        self._table: list[mx.array | PackedMatrix] = []

    def set_table(self, table: mx.array | PackedMatrix) -> None:
        """``table``: ``[n, hidden]``."""
        self._table = [table]

    def clear(self) -> None:
        self._table = []

    def __call__(self, ids: mx.array) -> mx.array:
        return self._table[0][ids]

    def as_linear(self, hidden: mx.array) -> mx.array:
        return self._head(hidden)


class LayerRows(nn.Module):
    """Replaces the per-layer table: returns rows that the decoder sets before each call.

    The ids of a call are ignored: they index the rows of :class:`RowEmbedding`, not this table.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[mx.array] = []

    def set_rows(self, rows: mx.array) -> None:
        """``rows``: ``[1, n, layers * width]`` of the tokens of a call."""
        self._rows = [rows]

    def clear(self) -> None:
        self._rows = []

    def __call__(self, ids: mx.array) -> mx.array:
        return self._rows[0]


class RowHead(nn.Module):
    """Replaces the LM head: logits of the active rows, for the last positions only.

    The model applies its soft-cap or scale to these logits. The hidden states are kept for the decoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self._head: list[Head] = []
        self._positions: int | mx.array = 1
        self._states: list[mx.array] = []
        self._hidden: list[mx.array] = []
        self._logits: list[mx.array] = []

    def set_head(self, head: Head) -> None:
        self._head = [head]

    def set_positions(self, positions: int | mx.array) -> None:
        """``positions``: how many of the last ones of the next call need logits; or of a batch of texts, the
        places ``[k]`` of those that do, in the flattened batch.
        """
        self._positions = positions

    @property
    def states(self) -> mx.array:
        """``[n, hidden]`` of all positions of the last call."""
        return self._states[0]

    @property
    def hidden(self) -> mx.array:
        """``[positions, hidden]`` of the last ones."""
        return self._hidden[0]

    @property
    def logits(self) -> mx.array:
        """``[positions, rows]`` of the last call, before the model changes them."""
        return self._logits[0]

    def clear(self) -> None:
        self._states, self._hidden, self._logits = [], [], []

    def __call__(self, hidden: mx.array) -> mx.array:
        self._states = [hidden[0]]
        if isinstance(self._positions, int):
            self._hidden = [hidden[0, -self._positions :]]
        else:
            self._hidden = [hidden.reshape(-1, hidden.shape[-1])[self._positions]]
        self._logits = [self._head[0].logits(self._hidden[0])]
        return self._logits[0][None]


@dataclass
class Body:
    """A model with :class:`RowEmbedding`, :class:`RowHead` and, for models with a per-layer table,
    :class:`LayerRows` in place of its tables.
    """

    model: nn.Module
    embedding: RowEmbedding
    layers: LayerRows | None
    head: RowHead
    #: Factors by which mlx-lm multiplies the tables while it loads them, by their names in the store.
    factors: dict[str, float]


def load_body(directory: ModelDirectory, dtype: mx.Dtype) -> Body:
    """Load the body of a model directory.

    The tables are never allocated, not while loading either, because MLX declares arrays lazily.

    Raises:
        ModelError: mlx-lm does not have this model, the weights do not fit it, or its tables are used in a
            way that cannot be replaced.
    """
    head = RowHead()
    embedding = RowEmbedding(head)
    factors: dict[str, float] = {}
    try:
        model, _ = load_model(
            directory.path,
            lazy=True,
            get_model_classes=lambda config: _tableless(config, directory, embedding, head, factors),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # Only the first line: tensors may be listed after it.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(directory.renamed(f"mlx-lm cannot load {directory.path} ({reason})")) from error
    # Some models keep a few parameters in float32.
    castable = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, value: mx.array) -> mx.array:
        return value.astype(dtype) if castable(path) and mx.issubdtype(value.dtype, mx.floating) else value

    model.update(tree_map_with_path(cast, model.parameters()))
    # Arrays that are not parameters, such as rotary frequencies, are computed once too.
    others = [value for module in model.modules() for value in module.values() if isinstance(value, mx.array)]
    mx.eval(model.parameters(), others)
    mx.clear_cache()
    layers = [module for module in model.modules() if isinstance(module, LayerRows)]
    return Body(model, embedding, layers[0] if layers else None, head, factors)


def _tableless(
    config: dict[str, Any],
    directory: ModelDirectory,
    embedding: RowEmbedding,
    head: RowHead,
    factors: dict[str, float],
) -> tuple[type, type]:
    """mlx-lm's classes for a model; the model class replaces its tables right after they are declared."""
    _refuse_misread(config)
    base, arguments = _get_classes(config)

    class Tableless(base):  # type: ignore[misc, valid-type]
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            self._tables = _replace_tables(self, embedding, head)
            for path in self._tables.values():
                # The rows know how the table is packed; nothing is left here that mlx-lm could quantize.
                (config.get("quantization") or {}).pop(path, None)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            # mlx-lm has read every model*.safetensors; only the files of the manifest count. Arrays are lazy.
            weights = {}
            for file in directory.weight_paths:
                weights |= cast(dict, mx.load(str(file)))
            if not hasattr(base, "sanitize"):
                return weights
            # Two made-up rows in place of each table show what sanitize does to the real ones.
            rows = 1 + mx.arange(2 * _PROBE_COLUMNS, dtype=mx.float32).reshape(2, -1)
            probes = {f"{path}.weight": mx.array(rows) for path in self._tables.values()}
            weights = super().sanitize({**weights, **probes})
            factors.update({name: _factor(weights, path, rows, base) for name, path in self._tables.items()})
            return weights

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            # mlx-lm calls this once, after it has replaced layers by quantized ones.
            declared = {name for name, _ in tree_flatten(self.parameters())}
            stored = {name for name, _ in weights}
            check_tensor_names(
                directory.name,
                f"mlx-lm's {base.__module__}",
                missing=declared - stored,
                unused=stored - declared,
            )
            return super().load_weights([each for each in weights if each[0] in declared], strict=strict)

    return Tableless, arguments


def _refuse_misread(config: dict[str, Any]) -> None:
    """Refuse quantized layers that mlx-lm misreads: it takes GPTQ's for AWQ's."""
    settings = config.get("quantization_config")
    if config.get("quantization") or not isinstance(settings, dict):
        return
    if (method := settings.get("quant_method")) == "bitnet":
        raise ModelError(
            "mlx-lm runs BitNet's layers only in a kernel for Metal, with which vt was not tried; run the "
            "model with vt-torch"
        )
    if method != "awq":
        raise ModelError(
            f"mlx-lm does not read layers quantized with {method}; run the model with vt-torch, or convert "
            "its original weights with vt-mlx convert --quantize 4"
        )


def _factor(weights: dict[str, mx.array], path: str, rows: mx.array, base: type) -> float:
    """Take a probe out of sanitized weights, and return the factor by which its ``rows`` were multiplied."""
    last = path.rpartition(".")[2]
    found = [
        name for name in weights if name.endswith(f"{last}.weight") and weights[name].shape == rows.shape
    ]
    if len(found) == 1:
        seen = weights.pop(found[0]).astype(mx.float32)
        factor = float(seen[0, 0]) / float(rows[0, 0])
        if mx.allclose(seen, factor * rows, rtol=1e-2).item():
            return factor
    raise ModelError(
        f"{base.__module__} changes {path} while it loads in a way that cannot be done row by row, "
        "so vt cannot run this model with MLX"
    )


def _replace_tables(model: nn.Module, embedding: RowEmbedding, head: RowHead) -> dict[str, str]:
    """Replace the tables of a model; returns the path of each by its name in the store."""
    paths = {"embedding": _replace(model, nn.Embedding, EMBEDDING_MODULES, embedding)}
    if any(name in HEAD_MODULES for _, name, _ in _modules(model, nn.Linear)):
        paths["head"] = _replace(model, nn.Linear, HEAD_MODULES, head)
    if any(name == PER_LAYER_MODULE for _, name, _ in _modules(model, nn.Embedding)):
        paths["per_layer"] = _replace(model, nn.Embedding, (PER_LAYER_MODULE,), LayerRows())
    return paths


def _replace(model: nn.Module, kind: type[nn.Module], names: tuple[str, ...], new: nn.Module) -> str:
    """Replace the only module of a kind that has one of some names by ``new``; returns its path."""
    found = [(path, name, parent) for path, name, parent in _modules(model, kind) if name in names]
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__bases__[0].__module__} has {len(found)} modules of the names "
            f"{', '.join(names)}; vt needs exactly one to replace"
        )
    path, name, parent = found[0]
    parent[name] = new
    return path


def _modules(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, str, nn.Module]]:
    """Path, own name and parent of each module of exactly that kind."""
    return [
        (f"{path}.{name}" if path else name, name, parent)
        for path, parent in model.named_modules()
        for name, child in parent.children().items()
        if type(child) is kind
    ]
