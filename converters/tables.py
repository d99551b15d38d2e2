"""Which tensors of a model are the vocabulary tables, and whether embedding and head are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.packed import Packed, find_packed
from converters.source import TensorInfo
from vt_core.errors import ConfigError, ModelError, shorten
from vt_core.files.architectures import PER_LAYER_MODULE, UNKNOWN, architecture_of
from vt_core.files.model_config import per_layer_shape, text_config

_PER_LAYER = f"{PER_LAYER_MODULE}.weight"


@dataclass(frozen=True)
class Tables:
    """The vocabulary tables of a model."""

    embedding: TensorInfo  #: `[V, hidden]`
    head: TensorInfo | None  #: `[V, hidden]`; None where the embedding is the head
    head_bias: TensorInfo | None  #: `[V]`
    per_layer: TensorInfo | None = None  #: `[rows, layers * width]`, in which the layers look tokens up
    #: tensors that a tied model stores besides: copies of the embedding under the head's name
    dropped: tuple[TensorInfo, ...] = ()
    #: the quantized ones among these by the name of their weight; the fields above describe their values
    packed: Mapping[str, Packed] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        return self.head is None

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors that do not belong to the body."""
        parts = (self.embedding, self.head, self.head_bias, self.per_layer, *self.dropped)
        names = frozenset(part.name for part in parts if part is not None)
        return names.union(*(packed.names for packed in self.packed.values()))


def find_tables(config: dict[str, Any], tensors: Iterable[TensorInfo]) -> Tables:
    """Find the tables among a model's tensors.

    Raises:
        ModelError: there is no embedding or more than one, or no head although the model is not tied; shapes
            contradict each other or the configuration; or a table is quantized in another format than MLX's
            affine one.
    """
    by_name = {info.name: info for info in tensors}
    per_layer_names = [name for name in by_name if name.endswith(_PER_LAYER)]
    packed = {}
    for name in (*_weights(UNKNOWN.embedding), *_weights(UNKNOWN.head), *per_layer_names):
        shape = per_layer_shape(config) if name in per_layer_names else None
        if name in by_name and (found := find_packed(config, by_name, name, shape and shape[1])) is not None:
            packed[name] = found
    by_name |= {name: found.values for name, found in packed.items()}
    row = architecture_of(config)
    embedding = _one_of(by_name, row.embedding, UNKNOWN.embedding, "embedding")
    head = _one_of(by_name, row.head, UNKNOWN.head, "head")
    tied = is_tied(config)
    if embedding is None and tied:
        # safetensors.torch.save_model keeps one name of a shared tensor, which may be the head's.
        embedding, head = head, None
    if embedding is None:
        _refuse_quantized(by_name, _weights(UNKNOWN.embedding))
        raise ModelError(
            f"The model ({config.get('model_type')}) has no embedding table under a name that vt knows, "
            f"such as {row.embedding[0]}.weight. vt converts decoder-only language models."
        )
    _check_table(config, embedding)
    if head is not None and head.shape != embedding.shape:
        raise ModelError(
            f"The head {head.name} has the shape {list(head.shape)} and the embedding {embedding.name} "
            f"{list(embedding.shape)}. vt needs one row of each for every token."
        )
    bias = _bias(by_name, head, embedding)
    per_layer = _one_of(
        by_name, [name.removesuffix(".weight") for name in per_layer_names], (), "table for its layers"
    )
    _check_per_layer(config, by_name, per_layer, embedding)
    if tied:
        return Tables(embedding, None, bias, per_layer, (head,) if head else (), packed)
    if head is None:
        _refuse_quantized(by_name, _weights(UNKNOWN.head))
        raise ModelError(
            f"The model ({config.get('model_type')}) has no head ({row.head[0]}.weight), and its config.json "
            "does not say that the embedding serves as one. If it does, add "
            '"tie_word_embeddings": true to config.json.'
        )
    return Tables(embedding, head, bias, per_layer, packed=packed)


def is_tied(config: dict[str, Any]) -> bool:
    """Whether embedding and head are one, by the configuration or else by default for its model type."""
    for part in (config, text_config(config)):
        flag = part.get("tie_word_embeddings")
        if isinstance(flag, bool):
            return flag
    return architecture_of(config).tied


def _weights(names: Iterable[str]) -> list[str]:
    return [f"{name}.weight" for name in names]


def _refuse_quantized(tensors: dict[str, TensorInfo], names: Sequence[str]) -> None:
    """Raise ModelError for a table that is stored as GPTQ, AWQ and others pack a layer."""
    for name in names:
        for part in ("qweight", "weight_packed"):
            packed = f"{name.removesuffix('weight')}{part}"
            if packed in tensors:
                raise ModelError(
                    f"{packed} is a quantized table. vt reads tables in floats or in MLX's affine format. "
                    "Use a model whose embedding and head were left alone, or the original weights."
                )


def _one_of(
    tensors: dict[str, TensorInfo], names: Sequence[str], others: Sequence[str], what: str
) -> TensorInfo | None:
    """The tensor under one of some names, or else under one of some others."""
    found = [tensors[name] for name in _weights(names) if name in tensors]
    if not found and others:
        return _one_of(tensors, others, (), what)
    if len(found) > 1:
        listed = " and ".join(info.name for info in found)
        raise ModelError(
            f"The model has more than one candidate for its {what}: {listed}. vt cannot tell which to use."
        )
    return found[0] if found else None


def _check_table(config: dict[str, Any], embedding: TensorInfo) -> None:
    if len(embedding.shape) != 2 or 0 in embedding.shape:
        raise ModelError(
            f"The embedding {embedding.name} has the shape {list(embedding.shape)}, which is not a table."
        )
    rows = embedding.shape[0]
    expected = text_config(config).get("vocab_size", config.get("vocab_size", rows))
    if isinstance(expected, bool) or not isinstance(expected, int):
        raise ConfigError(f"config.json says vocab_size {shorten(expected)}, which is not a number.")
    if expected != rows:
        raise ModelError(
            f"The embedding {embedding.name} has {rows} rows and config.json says vocab_size {expected}."
        )


def _check_per_layer(
    config: dict[str, Any], tensors: dict[str, TensorInfo], table: TensorInfo | None, embedding: TensorInfo
) -> None:
    shape = per_layer_shape(config)
    if table is None:
        if shape is not None:
            _refuse_quantized(tensors, [embedding.name.replace("embed_tokens.weight", _PER_LAYER)])
            raise ModelError(
                f"config.json gives the layers of the model ({config.get('model_type')}) a vocabulary table "
                f"(hidden_size_per_layer_input), and no tensor is named …{_PER_LAYER}."
            )
        return
    if table.shape != shape:
        raise ModelError(
            f"The table {table.name} has the shape {list(table.shape)}, and by vocab_size_per_layer_input, "
            "num_hidden_layers and hidden_size_per_layer_input in config.json it should have "
            f"{list(shape) if shape else 'none'}."
        )
    rows = table.shape[0]
    if rows < embedding.shape[0] and not architecture_of(config).short_per_layer:
        raise ModelError(
            f"The table {table.name} has {rows} rows for {embedding.shape[0]} tokens. Only of Gemma 3n it is "
            "known what the other tokens use."
        )


def _bias(
    tensors: dict[str, TensorInfo], head: TensorInfo | None, embedding: TensorInfo
) -> TensorInfo | None:
    names = [head.name] if head is not None else _weights(UNKNOWN.head)
    biases = [f"{name.removesuffix('weight')}bias" for name in names]
    found = [tensors[name] for name in biases if name in tensors]
    if not found:
        return None
    bias = found[0]
    if len(found) > 1 or bias.shape != embedding.shape[:1]:
        raise ModelError(
            f"The head bias {bias.name} has the shape {list(bias.shape)}. vt needs one head bias, with one "
            f"value for each of the {embedding.shape[0]} rows."
        )
    return bias
