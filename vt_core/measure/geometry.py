"""Models with real shapes and random weights, to measure speed and memory without the real weights.

Their output is not text. With tied tables such a model mostly repeats its last token (1 to 9 different tokens
among 24, for three narrower geometries), so the reduced head misses little; the real model may miss more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vt_core.errors import OptionError
from vt_core.files.dtypes import from_float32
from vt_core.files.manifest import FORMAT_VERSION
from vt_core.files.model_dir import ModelDirectory, is_model_directory

if TYPE_CHECKING:
    import numpy as np

    from converters.source import TensorInfo

_COMMON = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_QWEN3 = _COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "vocab_size": 151_936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_theta": 1e6,
}
#: config.json of each model, with the numbers of the real ones.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "llama-3.2-1b": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "gemma-3-270m": _COMMON
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32_768,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    },
}
_END = "<|endoftext|>"
_SPREAD = 0.02  #: standard deviation of the weights, as at initialization


def geometry_model(name: str, progress: bool = False) -> ModelDirectory:
    """The model directory of a geometry in the user's cache; written on first use.

    Raises:
        OptionError: the geometry is unknown.
        ModelError: the directory cannot be written.
    """
    from converters.cache import cache_directory
    from converters.convert import write_model
    from converters.output import locked

    if name not in GEOMETRIES:
        raise OptionError(f"unknown geometry {name!r}: choose one of {', '.join(GEOMETRIES)}")
    config = GEOMETRIES[name]
    digest = hashlib.sha256(f"{FORMAT_VERSION}{json.dumps(config)}".encode()).hexdigest()[:16]
    out = cache_directory() / "geometry" / f"{name}-{digest}"
    if not is_model_directory(out):
        with locked(out, announce=True):
            if not is_model_directory(out):
                write_model(RandomSource(name, config), out, dtype=None, progress=progress)
    return ModelDirectory.open(out)


class RandomSource:
    """A :class:`converters.source.Source` that draws random tensors while they are read."""

    kind = "random"
    default_dtype = "bfloat16"

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self.config = dict(config)
        end = int(config["vocab_size"]) - 1
        self.generation_config: dict[str, Any] | None = {"eos_token_id": end}
        self._shapes = dict(tensor_shapes(config))

    def fingerprint(self) -> str:
        return f"random:{self.name}"

    def tensors(self) -> list[TensorInfo]:
        from converters.source import TensorInfo

        return [TensorInfo(name, self.default_dtype, shape) for name, shape in self._shapes.items()]

    def chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        import numpy as np

        from converters.source import CHUNK_BYTES

        shape = self._shapes[name]
        rows, columns = shape[0], math.prod(shape[1:])
        # One seed per tensor, so that values do not depend on the order of reading.
        random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
        step = max(1, CHUNK_BYTES // (4 * columns))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            if len(shape) == 1:
                # Norms that change nothing; Gemma adds one to what is stored.
                neutral = 0.0 if str(self.config["model_type"]).startswith("gemma") else 1.0
                values = np.full((count, columns), neutral, np.float32)
            else:
                values = random.standard_normal((count, columns), dtype=np.float32)
                values *= np.float32(_SPREAD)
            yield from_float32(values, dtype)

    def write_tokenizer(self, out: Path) -> str:
        from converters.tokenizer_json import digest

        size = int(self.config["vocab_size"])
        (out / "tokenizer.json").write_text(json.dumps(tokenizer_json(size)), encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END}
        (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return digest(out / "tokenizer.json")


def tensor_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a geometry."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = ["input_layernorm", "post_attention_layernorm"]
    head_norms = []
    if config["model_type"] in ("qwen3", "gemma3_text"):
        head_norms = ["q_norm", "k_norm"]
    if config["model_type"] == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield from ((f"{prefix}.{name}.weight", (hidden,)) for name in norms)
        yield from ((f"{prefix}.self_attn.{name}.weight", (head,)) for name in head_norms)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def tokenizer_json(size: int) -> dict[str, Any]:
    """A byte-level tokenizer with that many ids: 256 bytes, invented words, and an end-of-text token."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = (
        "".join(letters)
        for length in itertools.count(2)
        for letters in itertools.product(string.ascii_lowercase, repeat=length)
    )
    tokens = [*sorted(ByteLevel.alphabet()), *itertools.islice(words, size - 257)]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": size - 1, "content": _END, **special}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [],
        },
    }
