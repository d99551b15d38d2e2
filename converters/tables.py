"""Which tensors of a model are the vocabulary tables, and whether embedding and head are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.packed import Packed, find_packed
from converters.source import TensorInfo
from vt_core.errors import ModelError
from vt_core.files.model_config import per_layer_shape, text_config

EMBEDDING_NAMES = (
    "model.embed_tokens.weight",  # Llama, Qwen, Gemma, Mistral, Phi, OLMo, …
    "embed_tokens.weight",  # the same, saved without the head's wrapper
    "model.language_model.embed_tokens.weight",  # models that also see
    "language_model.model.embed_tokens.weight",
    "model.text_model.embed_tokens.weight",
    "transformer.wte.weight",  # GPT-2, GPT-J, MPT, BigCode
    "wte.weight",
    "gpt_neox.embed_in.weight",  # Pythia
    "backbone.embeddings.weight",  # Mamba
    "backbone.embedding.weight",
    "transformer.word_embeddings.weight",  # Falcon, BLOOM
    "word_embeddings.weight",
    "model.decoder.embed_tokens.weight",  # OPT
    "decoder.embed_tokens.weight",
    "model.tok_embeddings.weight",  # InternLM 2
    "model.word_embeddings.weight",  # Bailing
    "model.embeddings.weight",  # RWKV 7
    "rwkv.embeddings.weight",
    "model.wte.weight",  # GPT-2 and Pythia as mlx-lm writes them
    "model.embed_in.weight",
)
HEAD_NAMES = (
    "lm_head.weight",
    "model.lm_head.weight",
    "language_model.lm_head.weight",
    "embed_out.weight",  # Pythia
    "model.embed_out.weight",
    "output.weight",  # InternLM 2
    "head.weight",  # RWKV
)
_PER_LAYER = "embed_tokens_per_layer.weight"  # Gemma 3n, Gemma 4
# fmt: off
TIED_BY_DEFAULT = frozenset({
    "biogpt", "bloom", "cohere", "cohere2", "cohere2_moe", "ctrl", "ernie4_5", "ernie4_5_moe", "falcon",
    "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4",
    "gemma4_text", "gpt2", "gpt_bigcode", "gpt_neo", "granite_swa", "jetmoe", "lfm2", "lfm2_moe", "lfm3",
    "mamba", "minicpm3", "modernbert-decoder", "mpt", "openai-gpt", "opt", "recurrent_gemma", "smollm3",
    "starcoder2", "vaultgemma", "xglm", "youtu", "zamba", "zamba2", "zaya",
})
# fmt: on
"""Model types whose configuration class in transformers 5.23 ties when config.json does not say; all others
do not."""


@dataclass(frozen=True)
class Tables:
    """The vocabulary tables of a model: `[V, hidden]`, `[V, hidden]` where untied, `[V]` where there is a
    bias, and `[rows, layers * width]` where the layers look every token up in a table of their own.

    `dropped` are tensors that a tied model stores besides: copies of the embedding under the head's name.
    `packed` holds, by the name of its weight, each of these that is quantized; the others describe values.
    """

    embedding: TensorInfo
    head: TensorInfo | None
    head_bias: TensorInfo | None
    per_layer: TensorInfo | None = None
    dropped: tuple[TensorInfo, ...] = ()
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
    """The tables among a model's tensors.

    Raises ModelError when there is no embedding or more than one, no head where the configuration promises
    one, when the shapes do not agree with each other and the configuration, or when a table is quantized in
    another format than MLX's affine one.
    """
    by_name = {info.name: info for info in tensors}
    per_layer_names = [name for name in by_name if name.endswith(_PER_LAYER)]
    packed = {}
    for name in (*EMBEDDING_NAMES, *HEAD_NAMES, *per_layer_names):
        shape = per_layer_shape(config) if name in per_layer_names else None
        if name in by_name and (found := find_packed(config, by_name, name, shape and shape[1])) is not None:
            packed[name] = found
    by_name |= {name: found.values for name, found in packed.items()}
    embedding = _one_of(by_name, EMBEDDING_NAMES, "embedding")
    if embedding is None:
        _refuse_quantized(by_name, EMBEDDING_NAMES)
        raise ModelError(
            f"The model ({config.get('model_type')}) has no embedding table under a name that vt knows, "
            "such as "
            f"{EMBEDDING_NAMES[0]}; vt converts decoder-only language models."
        )
    head = _one_of(by_name, HEAD_NAMES, "head")
    _check_table(config, embedding)
    if head is not None and head.shape != embedding.shape:
        raise ModelError(
            f"The head {head.name} has the shape {list(head.shape)} and the embedding {embedding.name} "
            f"{list(embedding.shape)}; vt needs one row of each for every token."
        )
    bias = _bias(by_name, head, embedding)
    per_layer = _one_of(by_name, per_layer_names, "table for its layers")
    _check_per_layer(config, by_name, per_layer, embedding)
    if is_tied(config):
        return Tables(embedding, None, bias, per_layer, (head,) if head else (), packed)
    if head is None:
        _refuse_quantized(by_name, HEAD_NAMES)
        raise ModelError(
            f"The model ({config.get('model_type')}) has no head ({HEAD_NAMES[0]}), and its config.json does "
            "not say "
            'that the embedding serves as one. If it does, add "tie_word_embeddings": true to config.json.'
        )
    return Tables(embedding, head, bias, per_layer, packed=packed)


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the configuration says that embedding and head are one, or its model type does so by
    default."""
    nested = text_config(config)
    for part in (config, nested):
        flag = part.get("tie_word_embeddings")
        if isinstance(flag, bool):
            return flag
    return config.get("model_type") in TIED_BY_DEFAULT or nested.get("model_type") in TIED_BY_DEFAULT


def _refuse_quantized(tensors: dict[str, TensorInfo], names: Sequence[str]) -> None:
    """Raise ModelError for a table that is there as GPTQ, AWQ and others pack a layer."""
    for name in names:
        for part in ("qweight", "weight_packed"):
            packed = f"{name.removesuffix('weight')}{part}"
            if packed in tensors:
                raise ModelError(
                    f"{packed} is a quantized table; vt reads tables in floats or in MLX's affine format. "
                    "Use a model whose embedding and head were left alone, or the original weights."
                )


def _one_of(tensors: dict[str, TensorInfo], names: Sequence[str], what: str) -> TensorInfo | None:
    found = [tensors[name] for name in names if name in tensors]
    if len(found) > 1:
        listed = " and ".join(info.name for info in found)
        raise ModelError(
            f"The model has more than one candidate for its {what}: {listed}. vt cannot tell which to use."
        )
    return found[0] if found else None


def _check_table(config: dict[str, Any], embedding: TensorInfo) -> None:
    if len(embedding.shape) != 2 or 0 in embedding.shape:
        raise ModelError(
            f"The embedding {embedding.name} has the shape {list(embedding.shape)}, which is no table."
        )
    expected = text_config(config).get("vocab_size", config.get("vocab_size"))
    if isinstance(expected, int) and expected != embedding.shape[0]:
        raise ModelError(
            f"The embedding {embedding.name} has {embedding.shape[0]} rows and config.json says "
            f"vocab_size {expected}."
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
    if rows < embedding.shape[0] and not str(config.get("model_type")).startswith("gemma3n"):
        raise ModelError(
            f"The table {table.name} has {rows} rows for {embedding.shape[0]} tokens, and what stands for "
            "the others is known of Gemma 3n only."
        )


def _bias(
    tensors: dict[str, TensorInfo], head: TensorInfo | None, embedding: TensorInfo
) -> TensorInfo | None:
    names = [head.name] if head is not None else list(HEAD_NAMES)
    bias = _one_of(tensors, [name.removesuffix("weight") + "bias" for name in names], "head bias")
    if bias is not None and bias.shape != embedding.shape[:1]:
        raise ModelError(
            f"The head bias {bias.name} has the shape {list(bias.shape)}; it needs one value for each of the "
            f"{embedding.shape[0]} rows."
        )
    return bias
