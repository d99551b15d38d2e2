"""The model's body: transformers' own classes, loaded without the vocabulary tables."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from vt_core.errors import ModelError
from vt_core.files.architectures import TEXT_PREFIXES
from vt_core.files.model_dir import ModelDirectory
from vt_core.files.tensor_names import check_tensor_names
from vt_core.vocab.heads import Head
from vt_torch.packed import dequantized
from vt_torch.prequantized import check_packages, declare, declare_integers, find_layout, finish


class RowEmbedding(nn.Module):
    """Replaces the embedding: looks ids up in ``table``, which the decoder sets before each call."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale  #: Gemma multiplies inside its embedding module
        #: ``[n, hidden]``; not a parameter, so that nothing saves or moves it
        self.table: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.table is not None, "the decoder sets the table before each call"
        return _scaled(nn.functional.embedding(ids, self.table), self.scale)


class LayerRows(nn.Module):
    """Replaces the per-layer table: returns ``rows``, which the decoder sets before each call.

    The ids of a call are ignored: they index the rows of :class:`RowEmbedding`, not this table.
    """

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.rows: torch.Tensor | None = None  #: ``[1, n, layers * width]`` of the tokens of a call

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.rows is not None, "the decoder sets the rows before each call"
        return _scaled(self.rows, self.scale)


def _scaled(rows: torch.Tensor, scale: float | None) -> torch.Tensor:
    # The scale is rounded to the rows' type first, as in the modules that this replaces.
    return rows if scale is None else rows * torch.tensor(scale).to(rows.dtype)


class RowHead(nn.Module):
    """Replaces the LM head: logits of the active rows, for the last :attr:`positions` only.

    The model applies its soft-cap or scale to these logits. The hidden states are kept for the decoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head: Head | None = None
        self.positions = 1  #: positions that need logits; the decoder sets it before each call
        self.states: torch.Tensor | None = None  #: ``[n, hidden]`` of all positions of the last call
        self.hidden: torch.Tensor | None = None  #: ``[positions, hidden]`` of the last ones
        #: ``[positions, rows]`` before the model changes them
        self.logits: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """Active rows ``[n, hidden]``, or their scales: Mamba reads their dtype."""
        if self.head is None:
            raise AttributeError("weight")
        rows = self.head.pieces[0]
        return rows.weight if rows.scales is None else rows.scales

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.head is not None, "the decoder sets the head once"
        self.states, self.hidden = hidden[0], hidden[0, -self.positions :]
        self.logits = self.head.logits(self.hidden)
        return self.logits[None]


#: Exceptions that transformers raises for unexpected values in config.json.
_CONFIG_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError)


def load_body(directory: ModelDirectory, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model of a model directory, with :class:`RowEmbedding`, :class:`RowHead` and, if it has a
    per-layer table, :class:`LayerRows` in place of its tables.

    The tables are never allocated, not while loading either. Weights in MLX's format are dequantized; layers
    in GPTQ's or AWQ's, and those stored as integers, are handled by :mod:`vt_torch.prequantized`.

    Args:
        directory: the model directory.
        device: where the weights go.
        dtype: float type of the run.

    Raises:
        ModelError: transformers does not have this model, the weights do not fit it, or its tables are used
            in a way that cannot be replaced.
    """
    check_packages(directory)
    layout = find_layout(directory)
    config, base, is_inside = _language_model(directory, replaces_layers=layout is not None)
    weights = dequantized(
        directory, _weights(directory.weight_paths, dtype if device.type == "cpu" else None)
    )
    if is_inside:
        weights = _text_weights(weights)

    def declare_layers(model: PreTrainedModel) -> None:
        if layout is not None:
            declare(model, layout, weights)
        if directory.manifest.integers:
            declare_integers(model, weights)

    # In transformers' module: of custom code, the loader does not compute buffers (Falcon H1 has some).
    attributes = {"__module__": base.__module__, "_declare": declare_layers}
    body: Any = type(f"Tableless{base.__name__}", (_Tableless, base), attributes)
    try:
        with _quiet():
            model, report = body.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                # Placing on the CPU is the default, and would need the accelerate package.
                **({} if device.type == "cpu" else {"device_map": {"": device}}),
            )
    except _CONFIG_ERRORS as error:
        raise ModelError(
            f"transformers' {base.__name__} does not take what config.json of {directory.name} says "
            f"({type(error).__name__}: {directory.renamed(str(error))})"
        ) from error
    _check_report(directory, base, report)
    finish(model)
    return model.eval().requires_grad_(False)


def _language_model(
    directory: ModelDirectory, *, replaces_layers: bool
) -> tuple[PretrainedConfig, type[PreTrainedModel], bool]:
    """transformers' configuration and class of a language model, and whether it is a part of another model.

    Args:
        directory: the model directory.
        replaces_layers: whether :func:`declare` puts quantized layers into the model, and not transformers.
    """
    try:
        config = AutoConfig.from_pretrained(directory.path, trust_remote_code=False)
        if replaces_layers:
            del config.quantization_config  # or transformers would ask for packages
        text = config.get_text_config()
        is_inside = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING and text is not config
        if is_inside:
            config = _text_config(config)
        return config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], is_inside
    except _CONFIG_ERRORS as error:
        raise ModelError(
            f"transformers has no text generation model for config.json of {directory.name} "
            f"({directory.renamed(str(error))})"
        ) from error


def _check_report(directory: ModelDirectory, base: type, report: Mapping[str, Any]) -> None:
    """Check what transformers reports about tensors that do not fit the model.

    Raises:
        ModelError: one has another shape, or is missing.
    """
    if report["mismatched_keys"]:
        name, stored, declared = min(report["mismatched_keys"])
        raise ModelError(
            f"{directory.name} does not fit transformers' {base.__name__}: {name} has the shape "
            f"{list(stored)}, but config.json asks for {list(declared)}; convert it again"
        )
    check_tensor_names(
        directory.name,
        f"transformers' {base.__name__}",
        missing=report["missing_keys"],
        unused=report["unexpected_keys"],
    )


def _weights(files: Sequence[Path], dtype: torch.dtype | None) -> dict[str, Any]:
    """Tensors of weight files by name, not read yet.

    Tensors of the type ``dtype``, and integers of 8-bit layers, are used as they are on a CPU. They are
    mapped, so the system can drop their pages. Other tensors are read one by one: the mapped pages of a
    tensor that is converted or copied to a device would stay resident beside the result until loading ends
    (Qwen2.5 0.5B in float32: 2.2 GB instead of 1.5).
    """
    kept = () if dtype is None else (_STORED[dtype], "I8")
    weights: dict[str, Any] = {}
    for file in files:
        try:
            mapped, read = (safe_open(file, "pt", backend=how) for how in ("mmap", "pread"))
        except SafetensorError as error:
            raise ModelError(
                f"{file} is not a complete safetensors file ({error}); convert the model again"
            ) from error
        for name in mapped.keys():  # noqa: SIM118
            tensor = mapped.get_slice(name)
            weights[name] = tensor if tensor.get_dtype() in kept else read.get_slice(name)
    return weights


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language model inside a model.

    Only the language model is loaded. The other parts would cost memory for nothing; Gemma 3n's need another
    package, and Gemma 4's class compares its ids with those of images.
    """
    text = config.get_text_config()
    if settings := getattr(config, "quantization_config", None):
        text.quantization_config = settings
    return text


def _text_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of the language model inside a model, by their names in a plain language model."""
    inside = {text_name(name): weight for name, weight in weights.items() if name.startswith(TEXT_PREFIXES)}
    return inside or weights


def text_name(name: str) -> str:
    """Name of a module or tensor of a multimodal model in the plain language model."""
    prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "model.")
    return f"model.{name.removeprefix(prefix)}"


#: Float types as safetensors calls them.
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class _Tableless:
    """Mixin before a transformers class: replaces the tables right after they are declared."""

    _tied_weights_keys: Any = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model: Any = self
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        model.set_input_embeddings(RowEmbedding(_scale(embedding, model)))
        if type(head) is not nn.Linear:
            raise ModelError(
                f"the head of {type(model).__name__} is a {type(head).__name__}, which vt cannot replace"
            )
        model.set_output_embeddings(RowHead())
        if (table := layer_table(model)) is not None:
            model.base_model.embed_tokens_per_layer = LayerRows(_scale(table, model))
        model._declare()


def layer_table(model: PreTrainedModel) -> Any:
    """The per-layer table of a model, or the :class:`LayerRows` in its place; None if it has none."""
    return getattr(model.base_model, "embed_tokens_per_layer", None)


def _scale(embedding: nn.Module, model: nn.Module) -> float | None:
    """Factor that an embedding module applies; None for a plain look-up."""
    if type(embedding).forward is nn.Embedding.forward:
        return None
    scale = getattr(embedding, "scalar_embed_scale", None)
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ModelError(
            f"the embedding of {type(model).__name__} is a {type(embedding).__name__}, "
            "which vt cannot replace"
        )
    return float(scale)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loader's progress bar and warnings; afterwards, what the application had set is back."""
    logger = logging.getLogger("transformers")
    # Not disable_progress_bar(): that also changes huggingface_hub's settings, which cannot be read back.
    level, shows_progress = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(max(logger.getEffectiveLevel(), logging.ERROR))
    transformers_logging._tqdm_active = False
    try:
        yield
    finally:
        logger.setLevel(level)
        transformers_logging._tqdm_active = shows_progress
