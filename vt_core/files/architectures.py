"""What vt knows about families of models: one table, one row per family.

The converters and both backends read this table. A model type without a row is treated like Llama; its tables
may have any of the names below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

#: Where a language model lies within a model that also takes images or sound: prefixes of its tensors.
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.text_model.")


@dataclass(frozen=True)
class Architecture:
    """What vt knows about one family. The defaults are those of Llama."""

    #: Names of the embedding's tensor, without ``.weight``. Published files of one family differ: some were
    #: saved without the class of the head, some by mlx-lm.
    embedding: tuple[str, ...] = (
        "model.embed_tokens",
        "embed_tokens",
        "model.language_model.embed_tokens",
        "language_model.model.embed_tokens",
        "model.text_model.embed_tokens",
    )
    #: Names of the head's tensor, without ``.weight``, the one that transformers writes first.
    head: tuple[str, ...] = ("lm_head", "model.lm_head", "language_model.lm_head")
    #: Whether transformers ties embedding and head where config.json does not say.
    tied: bool = False
    #: Whether the per-layer table may have fewer rows than the embedding (the row of id 0 stands in).
    short_per_layer: bool = False
    #: Fields of config.json with which the model changes its logits: it multiplies by the first, divides by
    #: the second, and caps them softly at the third.
    logit_factor: str = "logit_scale"
    logit_divisor: str = "logits_scaling"
    logit_cap: str = "final_logit_softcapping"
    #: Whether mlx-lm multiplies the head's rows by the factor while loading, instead of the logits. It then
    #: multiplies the embedding's rows by the field `embedding_multiplier`, a tied head's with them.
    mlx_folds_factor: bool = False
    #: Whether transformers drops the cache of a text that outgrows the original context (longrope).
    rebuilds_cache: bool = False
    #: Whether the layers with a sliding window have a rotary base of their own.
    local_rope: bool = False
    #: Whether mlx-lm reads the weights by the names and values of Hugging Face. If so, PyTorch can run what
    #: MLX packed, and vt can quantize the model for MLX. Other weights are renamed, transposed or scaled.
    same_weights_in_mlx: bool = False
    #: Whether layers are stored transposed, in modules that PyTorch's 8-bit and 4-bit kernels cannot replace.
    transposed_layers: bool = False
    #: Layers that mlx-lm always packs in 8 bits: how their names end.
    eight_bit_layers: tuple[str, ...] = ()


_GPT2 = ("transformer.wte", "wte", "model.wte")
_BLOOM = ("transformer.word_embeddings", "word_embeddings")
_MAMBA = ("backbone.embeddings", "backbone.embedding")
_OPT = ("model.decoder.embed_tokens", "decoder.embed_tokens")

_TIED = Architecture(tied=True)
_PLAIN = Architecture(same_weights_in_mlx=True)
_TIED_PLAIN = Architecture(tied=True, same_weights_in_mlx=True)
_LONGROPE = Architecture(rebuilds_cache=True)
_LOCAL_ROPE = Architecture(tied=True, local_rope=True)

#: By ``model_type`` in config.json. Whether a type ties its tables by default was read from the configuration
#: classes of transformers 5.23, and a test compares them.
ARCHITECTURES: dict[str, Architecture] = {
    "bailing_moe": Architecture(embedding=("model.word_embeddings",)),
    "biogpt": _TIED,
    "bloom": Architecture(embedding=_BLOOM, tied=True),
    "cohere": _TIED_PLAIN,
    "cohere2": _TIED,
    "cohere2_moe": _TIED,
    "cohere_compass_text": _TIED,
    "ctrl": _TIED,
    "ernie4_5": _TIED_PLAIN,
    "ernie4_5_moe": _TIED,
    "exaone4": _PLAIN,
    "falcon": Architecture(embedding=_BLOOM, tied=True),
    "falcon_h1": Architecture(logit_factor="lm_head_multiplier", mlx_folds_factor=True),
    "falcon_mamba": Architecture(embedding=_MAMBA, tied=True),
    "gemma": _TIED,
    "gemma2": _TIED_PLAIN,
    "gemma3": _LOCAL_ROPE,
    "gemma3_text": Architecture(tied=True, local_rope=True, same_weights_in_mlx=True),
    "gemma3n": Architecture(tied=True, local_rope=True, short_per_layer=True, same_weights_in_mlx=True),
    "gemma3n_text": Architecture(tied=True, local_rope=True, short_per_layer=True),
    "gemma4": _TIED_PLAIN,
    "gemma4_text": _TIED_PLAIN,
    "gemma4_unified": _TIED,
    "gemma4_unified_text": _TIED,
    "glm4": _PLAIN,
    "gpt2": Architecture(embedding=_GPT2, tied=True, transposed_layers=True),
    "gpt_bigcode": Architecture(embedding=_GPT2, tied=True),
    "gpt_neo": Architecture(embedding=_GPT2, tied=True),
    "gpt_neox": Architecture(
        embedding=("gpt_neox.embed_in", "model.embed_in"), head=("embed_out", "model.embed_out", "lm_head")
    ),
    "gptj": Architecture(embedding=_GPT2),
    "granite": Architecture(
        same_weights_in_mlx=True, eight_bit_layers=("self_attn.o_proj", "mlp.down_proj", "lm_head")
    ),
    "granite_swa": _TIED,
    "helium": _PLAIN,
    "hunyuan_v1_dense": _PLAIN,
    "internlm2": Architecture(embedding=("model.tok_embeddings",), head=("output",)),
    "jetmoe": _TIED,
    "lfm2": _TIED,
    "lfm2_moe": _TIED,
    "lfm3": _TIED,
    "llama": _PLAIN,
    "mamba": Architecture(embedding=_MAMBA, tied=True),
    "mamba2": Architecture(embedding=_MAMBA),
    "minicpm3": _TIED,
    "mistral": _PLAIN,
    "modernbert-decoder": _TIED,
    "mpt": Architecture(embedding=_GPT2, tied=True),
    "nemotron_h": Architecture(embedding=("backbone.embeddings", "model.embeddings", "model.embed_tokens")),
    "olmo2": _PLAIN,
    "olmo3": _PLAIN,
    "openai-gpt": Architecture(tied=True, transposed_layers=True),
    "opt": Architecture(embedding=_OPT, tied=True),
    "phi": _PLAIN,
    "phi3": Architecture(rebuilds_cache=True, same_weights_in_mlx=True),
    "phi4_multimodal": _LONGROPE,
    "phimoe": _LONGROPE,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "recurrent_gemma": Architecture(tied=True, logit_cap="logits_soft_cap"),
    "rwkv7": Architecture(embedding=("model.embeddings", "rwkv.embeddings"), head=("head", "lm_head")),
    "smollm3": _TIED_PLAIN,
    "starcoder2": _TIED_PLAIN,
    "vaultgemma": _TIED,
    "xglm": _TIED,
    "youtu": _TIED,
    "zamba": _TIED,
    "zamba2": _TIED,
    "zaya": _TIED,
}


def _distinct(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))


_ROWS = (Architecture(), *ARCHITECTURES.values())
#: For a model type without a row: like Llama, with the tables under any known name.
UNKNOWN = Architecture(
    embedding=_distinct(row.embedding for row in _ROWS), head=_distinct(row.head for row in _ROWS)
)
#: Last parts of the names of all embeddings, of all heads and of per-layer tables: modules are called so too.
EMBEDDING_MODULES = _distinct((name.rpartition(".")[2],) for name in UNKNOWN.embedding)
HEAD_MODULES = _distinct((name.rpartition(".")[2],) for name in UNKNOWN.head)
PER_LAYER_MODULE = "embed_tokens_per_layer"


def architecture(*model_types: object) -> Architecture:
    """The row of the first of some model types that has one.

    Args:
        model_types: values of ``model_type``, of the whole model and of the language model inside it.
    """
    for name in model_types:
        if isinstance(name, str) and name in ARCHITECTURES:
            return ARCHITECTURES[name]
    return UNKNOWN


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The row of a configuration, the content of config.json."""
    text = config.get("text_config")
    return architecture(config.get("model_type"), text.get("model_type") if isinstance(text, dict) else None)


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its logits after the head. None stands for nothing."""

    factor: float | None
    divisor: float | None
    cap: float | None

    @property
    def changes_nothing(self) -> bool:
        return self.factor is None and self.divisor is None and self.cap is None

    def apply(self, logits: Any, tanh: Callable[[Any], Any]) -> Any:
        """Changed logits, an array of a framework whose ``tanh`` is given."""
        if self.factor is not None:
            logits = logits * self.factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = tanh(logits / self.cap) * self.cap
        return logits


def logit_transform(
    row: Architecture, value: Callable[[str], float | None], *, in_mlx: bool = False
) -> LogitTransform:
    """What a model of a family does to its logits.

    Args:
        row: of the model's type.
        value: a field of its configuration by name; None where it has none.
        in_mlx: whether mlx-lm runs the model, which applies some factors to the head's rows.
    """
    factor = value(row.logit_factor)
    if in_mlx and row.mlx_folds_factor and factor is not None:
        multiplier = value("embedding_multiplier")
        factor = factor / multiplier if value("tie_word_embeddings") and multiplier else None
    return LogitTransform(factor, value(row.logit_divisor), value(row.logit_cap))
