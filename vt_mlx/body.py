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
    """Stands where the embedding stood: looks ids up in ``table``, whatever rows that holds at the moment.

    Where embedding and head are one matrix the model calls :meth:`as_linear` for its logits.
    """

    def __init__(self, head: RowHead) -> None:
        super().__init__()
        # Behind an underscore, so that neither counts as a parameter.
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
    """Stands where the layers looked tokens up in a table of their own: gives the rows that are set, whatever
    it is asked for. Which row a token has is decided by its full id, and what a body is given are other
    numbers.
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
    """Stands where the LM head stood: logits of the active rows, for the last position only.

    What the model does to its logits afterwards (soft-cap, scale) happens to these. The hidden states stay
    here for the decoder to take.
    """

    def __init__(self) -> None:
        super().__init__()
        self._head: list[Head] = []
        self._states: list[mx.array] = []
        self._hidden: list[mx.array] = []
        self._logits: list[mx.array] = []

    def set_head(self, head: Head) -> None:
        self._head = [head]

    @property
    def states(self) -> mx.array:
        """``[n, hidden]`` of the last call, every position."""
        return self._states[0]

    @property
    def hidden(self) -> mx.array:
        """``[1, hidden]``, the last one of them."""
        return self._hidden[0]

    @property
    def logits(self) -> mx.array:
        """``[1, n]`` of the last call as they left here, before what the model does to them."""
        return self._logits[0]

    def clear(self) -> None:
        self._states, self._hidden, self._logits = [], [], []

    def __call__(self, hidden: mx.array) -> mx.array:
        self._states, self._hidden = [hidden[0]], [hidden[0, -1:]]
        self._logits = [self._head[0].logits(self._hidden[0])]
        return self._logits[0][None]


@dataclass
class Body:
    """A model with a :class:`RowEmbedding`, a :class:`RowHead` and, where its layers have a table of their
    own, a :class:`LayerRows` in place of its tables.
    """

    model: nn.Module
    embedding: RowEmbedding
    layers: LayerRows | None
    head: RowHead
    #: What the model multiplies its tables with while it loads them, by their names in the store.
    factors: dict[str, float]


def load_body(directory: ModelDirectory, dtype: mx.Dtype) -> Body:
    """The body of a model directory.

    No table is ever made, not while loading either: MLX declares arrays lazily, and loading is strict
    about the rest.

    Raises:
        ModelError: mlx-lm does not have this model, or its tables are used in a way that cannot be replaced.
    """
    path, head = directory.path, RowHead()
    embedding = RowEmbedding(head)
    factors: dict[str, float] = {}
    try:
        model, _ = load_model(
            path,
            lazy=True,
            get_model_classes=lambda config: _tableless(config, directory, embedding, head, factors),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # The first line: a list of all tensors may follow. Values of config.json raise what they happen to.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"mlx-lm cannot load {path} ({reason})") from error
    # Some models keep a few parameters in float32, and say which.
    castable = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, value: mx.array) -> mx.array:
        return value.astype(dtype) if castable(path) and mx.issubdtype(value.dtype, mx.floating) else value

    model.update(tree_map_with_path(cast, model.parameters()))
    # Also what is no parameter, such as rotary frequencies: an array that is still to be computed belongs to
    # the thread that described it, and requests may come from another.
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
    """mlx-lm's classes for a model, the first one swapping its tables as soon as they are declared."""
    _refuse_misread(config)
    base, arguments = _get_classes(config)

    class Tableless(base):  # type: ignore[misc, valid-type]
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            self._probes = {"embedding": _replace(self, nn.Embedding, EMBEDDING_MODULES, embedding)}
            if any(name in HEAD_MODULES for _, name, _ in _modules(self, nn.Linear)):
                self._probes["head"] = _replace(self, nn.Linear, HEAD_MODULES, head)
            if any(name == PER_LAYER_MODULE for _, name, _ in _modules(self, nn.Embedding)):
                self._probes["per_layer"] = _replace(self, nn.Embedding, (PER_LAYER_MODULE,), LayerRows())
            for path in self._probes.values():
                # How it is packed is the rows' business: there is no layer here that could be quantized.
                (config.get("quantization") or {}).pop(path, None)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            # mlx-lm has read every model*.safetensors; only the files of the manifest count. Arrays are lazy.
            weights = {
                name: array
                for file in directory.weight_paths
                for name, array in cast(dict, mx.load(str(file))).items()
            }
            if not hasattr(base, "sanitize"):
                return weights
            # Two made-up rows in the tables' place show what would be done to the real ones.
            rows = 1 + mx.arange(2 * _PROBE_COLUMNS, dtype=mx.float32).reshape(2, -1)
            probes = {f"{path}.weight": mx.array(rows) for path in self._probes.values()}
            weights = super().sanitize({**weights, **probes})
            for table, path in self._probes.items():
                factors[table] = _factor(weights, path, rows, base)
            return weights

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            # mlx-lm calls this once, after it has put in layers of quantized weights.
            declared = {name for name, _ in tree_flatten(self.parameters())}
            stored = {name for name, _ in weights}
            check_tensor_names(
                directory.path,
                f"mlx-lm's {base.__module__}",
                missing=declared - stored,
                unused=stored - declared,
            )
            return super().load_weights([each for each in weights if each[0] in declared], strict=strict)

    return Tableless, arguments


def _refuse_misread(config: dict[str, Any]) -> None:
    """Of layers that came quantized, mlx-lm takes GPTQ's for AWQ's, and reads others of one model only."""
    settings = config.get("quantization_config")
    if config.get("quantization") or not isinstance(settings, dict):
        return
    if (method := settings.get("quant_method")) != "awq":
        raise ModelError(
            f"mlx-lm does not read layers quantized with {method}; run the model with vt-torch, or convert "
            "its original weights with vt-mlx convert --quantize 4"
        )


def _factor(weights: dict[str, mx.array], path: str, rows: mx.array, base: type) -> float:
    """Take a probe out of sanitised weights, and tell by what its ``rows`` were multiplied."""
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


def _replace(model: nn.Module, kind: type[nn.Module], names: tuple[str, ...], new: nn.Module) -> str:
    """Put ``new`` where the one module of that kind and one of those names is; returns its path."""
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
