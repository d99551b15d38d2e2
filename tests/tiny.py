"""Tiny models with random weights, as Hugging Face directories, made when a test asks for them.

A quantized one is in mlx-lm's layout, beside a directory of floats: the values that its weights stand for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.families import FAMILIES, Wrapper

#: Padding rows after the tokenizer's ids, as in Qwen.
PADDING_ROWS = 21
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(directory: Path, words: int = 2000) -> int:
    """Write a byte-level tokenizer with ``words`` invented merges; returns its number of ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIALS + alphabet)}
    letters, merges = "abcdefghijklmnopqrstuvwxyzĠ", []
    pairs = [(a, b) for a in letters for b in letters] + [
        (a + b, c) for a in letters for b in letters for c in letters
    ]
    for first, second in pairs[:words]:
        vocabulary[first + second] = len(vocabulary)
        merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def write_model(directory: Path, kind: str, dtype: str = "float32", seed: int = 0, **changes: object) -> Path:
    """Write a random model of one of the :data:`KINDS` or :data:`ARCHITECTURES`, with its tokenizer. Those in
    :data:`QUANTIZED` are quantized. ``changes`` override its configuration.
    """
    _write_floats(directory, kind, dtype, seed, changes)
    if kind in QUANTIZED:
        quantize(directory, *QUANTIZED[kind])
    return directory


def stock_source(source: Path, backend: str) -> Path:
    """The directory that a stock framework loads for a model that :func:`write_model` wrote. transformers
    does not read MLX's quantized weights, and needs one more package for the vision part of Gemma 3n.
    """
    floats = floats_of(source)
    return floats if backend == "torch" and floats.exists() else source


def floats_of(source: Path) -> Path:
    return source.with_name(f"{source.name}-floats")


def quantize(source: Path, bits: int, group_size: int, tables: tuple[int, int] | None = None) -> None:
    """Quantize the matrices of a model, tables included, in place; ``tables``: bits of embedding and head."""
    from safetensors.torch import load_file, save_file

    floats = floats_of(source)
    shutil.copytree(source, floats)
    packed, values = {}, {}
    settings = {"bits": bits, "group_size": group_size, "mode": "affine"}
    for name, tensor in load_file(source / "model.safetensors").items():
        packed[name] = values[name] = tensor
        if not name.endswith(".weight") or tensor.dim() != 2 or tensor.shape[1] % group_size:
            continue
        module = name.removesuffix(".weight")
        own = bits
        if tables is not None and module in ("model.embed_tokens", "lm_head"):
            own = tables[module == "lm_head"]
            settings[module] = {"bits": own, "group_size": group_size}
        parts, values[name] = _quantized(tensor, own, group_size)
        packed |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(packed, source / "model.safetensors", {"format": "mlx"})
    save_file(values, floats / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization": settings, "quantization_config": settings}
    (source / "config.json").write_text(json.dumps(config))


def _quantized(tensor, bits: int, group_size: int):
    """The three tensors of a quantized matrix, and the values that they represent, in its dtype."""
    import torch

    from vt_core.files import packing

    words, scales, biases = packing.quantize(tensor.float().numpy(), bits, group_size)
    floats = [torch.from_numpy(part).to(tensor.dtype) for part in (scales, biases)]
    values = packing.dequantize_groups(words, *(part.float().numpy() for part in floats), bits)
    parts = {"weight": torch.from_numpy(words), "scales": floats[0], "biases": floats[1]}
    return parts, torch.from_numpy(values).to(tensor.dtype)


def _write_floats(directory: Path, kind: str, dtype: str, seed: int, changes: dict) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    directory.mkdir(parents=True, exist_ok=True)
    rows = write_tokenizer(directory) + PADDING_ROWS
    config_class, particular = {**KINDS, **ARCHITECTURES, **OTHERS}[kind]
    options = SIZES | {"vocab_size": rows} | particular | changes
    text = options.pop("text_config", None)
    for part in (options, text or {}):
        if "hidden_size_per_layer_input" in part:
            part.setdefault("vocab_size_per_layer_input", rows)
    if text is not None:
        text = SIZES | {"vocab_size": rows} | text
        options = {"text_config": text} | {name: options[name] for name in options.keys() - SIZES.keys()}
    config = getattr(transformers, config_class)(**options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough for varied texts, with biases and norms away from their neutral values. Gemma
            # multiplies its embedding by seven here, which would hide the effect of the layers.
            scaled = "gemma" in kind and "embed_tokens" in name
            spread = 0.04 if scaled else 0.3 if parameter.dim() == 1 else 0.25
            parameter.add_(torch.randn_like(parameter) * spread)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.mul_(0.8)
        # A trained model never chooses padding. Make sure that this random one does not either.
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in table.parameters():
                parameter[-PADDING_ROWS:] = 0
    model.save_pretrained(directory)
    if kind == "gpt2":
        # As published: the body saved without the head's wrapper, which mlx-lm expects.
        file = directory / "model.safetensors"
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    # transformers 5 writes rope_parameters only. Older files have these fields too, and mlx-lm reads them.
    saved = json.loads((directory / "config.json").read_text())
    theta = saved.get("rope_parameters", {}).get("rope_theta")
    older = ({"rope_theta": theta} if theta else {}) | OLDER_NAMES.get(kind, {})
    if text is not None:
        older["text_config"] = saved["text_config"] | older.get("text_config", {})
    (directory / "config.json").write_text(json.dumps(saved | older))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    if kind == "gemma3n":
        shutil.copytree(directory, floats_of(directory))
        _publish_gemma3n(directory)
    if kind in FAMILIES and (wrapper := FAMILIES[kind].wrapper) is not None:
        shutil.copytree(directory, floats_of(directory))
        _publish(directory, wrapper)


def _publish(directory: Path, wrapper: Wrapper) -> None:
    """Lay a language model out as published: inside a model that also takes images."""
    import torch
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = {wrapper.rename(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {name: torch.ones(2, 2) for name in wrapper.others}, file, {"format": "pt"})
    text = json.loads((directory / "config.json").read_text())
    config = wrapper.config | {"text_config": text, "tie_word_embeddings": text["tie_word_embeddings"]}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        (directory / name).write_text('{"image_processor_type": "Qwen2VLImageProcessorFast"}')


def _publish_gemma3n(directory: Path) -> None:
    """Use the published layout, which mlx-lm expects: the language model inside a multimodal one, whose other
    parts are left out here, with unused keys and values of the layers that share them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    text = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    shared = range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"])
    for name, tensor in list(tensors.items()):
        head, _, tail = name.partition("layers.0.self_attn.")
        if tail in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            tensors |= {f"{head}layers.{at}.self_attn.{tail}": torch.randn_like(tensor) for at in shared}
    renamed = {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
    save_file(renamed, directory / "model.safetensors", {"format": "pt"})
    config = {"model_type": "gemma3n", "eos_token_id": 0, "tie_word_embeddings": True, "text_config": text}
    (directory / "config.json").write_text(json.dumps(config))


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_WIDE = {"hidden_size": 64, "intermediate_size": 128}
#: Configuration class of transformers, and fields that differ from the common ones.
KINDS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 16,
        },
    ),
    # Wide enough for groups.
    "llama-4bit": ("LlamaConfig", {"tie_word_embeddings": True, **_WIDE}),
    "qwen2-8bit": ("Qwen2Config", {"tie_word_embeddings": False, **_WIDE}),
}
#: Bits, group size, and bits of embedding and head where they differ.
QUANTIZED: dict[str, tuple] = {"llama-4bit": (4, 32), "qwen2-8bit": (8, 64, (5, 6))}

_GEMMA3_TEXT = {key: value for key, value in KINDS["gemma3"][1].items() if key != "tie_word_embeddings"}

_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 128,
}

#: Models with a per-layer table, whose last two layers share the keys and values of earlier ones.
_PER_LAYER = {
    "num_hidden_layers": 5,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
    "sliding_window": 16,
    "head_dim": 12,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "final_logit_softcapping": 0.3,
    "pad_token_id": 0,
}
_GEMMA4_TEXT = _PER_LAYER | {"global_head_dim": 16, "use_double_wide_mlp": True}

_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.2, 3.0],
    "long_factor": [1.0, 1.1, 1.4, 1.8, 2.4, 3.2, 4.0, 5.0],
    "original_max_position_embeddings": 128,
}

#: The same for the other families. Their particular fields have values that change the text.
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 4,
            "sliding_window": 16,
            "final_logit_softcapping": 0.3,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3-multimodal": (
        "Gemma3Config",
        {
            "text_config": _GEMMA3_TEXT,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_PER_LAYER,
            "vocab_size_per_layer_input": 500,
            "laurel_rank": 8,
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "activation_sparsity_pattern": [0.6, 0.0, 0.3, 0.0, 0.0],
        },
    ),
    "gemma4": ("Gemma4TextConfig", _GEMMA4_TEXT),
    "gemma4-multimodal": (
        "Gemma4Config",
        {
            "text_config": _GEMMA4_TEXT,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "position_embedding_size": 16,
            },
        },
    ),
    "mistral": (
        "MistralConfig",
        {"tie_word_embeddings": False, "sliding_window": None, "head_dim": 16, "rope_theta": 1e6},
    ),
    "phi": ("PhiConfig", {"tie_word_embeddings": False, "partial_rotary_factor": 0.5}),
    "phi3": (
        "Phi3Config",
        {"tie_word_embeddings": False, "rope_parameters": {**_LONGROPE, "rope_theta": 1e4}, **_WIDE},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {"tie_word_embeddings": False, "rotary_pct": 0.5, "intermediate_size": 192},
    ),
    "gpt2": ("GPT2Config", {"n_positions": 512}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}),
    "olmo2": ("Olmo2Config", {"tie_word_embeddings": False}),
    "granite": (
        "GraniteConfig",
        {
            "tie_word_embeddings": True,
            "logits_scaling": 3.0,
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "deepseek-coder": (
        "LlamaConfig",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
        },
    ),
    "falcon_h1": (
        "FalconH1Config",
        {
            "tie_word_embeddings": False,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8, "intermediate_size": 96, "time_step_rank": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "tie_word_embeddings": False,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "tie_word_embeddings": False,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {**_YARN, "rope_theta": 150000.0},
        },
    ),
}

ARCHITECTURES |= {kind: (family.config_class, family.options) for kind, family in FAMILIES.items()}

#: Models of single tests, in none of the tables above.
OTHERS: dict[str, tuple[str, dict]] = {
    "llama-wide": ("LlamaConfig", {"tie_word_embeddings": False, **_WIDE}),
    "llama-dynamic": (
        "LlamaConfig",
        {
            "head_dim": 12,
            "max_position_embeddings": 12,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
        },
    ),
    "llama-longrope": (
        "LlamaConfig",
        {
            "head_dim": 16,
            "rope_parameters": {**_LONGROPE, "rope_theta": 1e4, "original_max_position_embeddings": 16},
        },
    ),
}

#: Further fields of the published config.json files that mlx-lm needs.
OLDER_NAMES: dict[str, dict] = {
    "phi": {"partial_rotary_factor": 0.5},
    "deepseek-coder": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "phi3": {"rope_scaling": {"type": "longrope", **_LONGROPE}, "original_max_position_embeddings": 128},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt2": {"n_ctx": 512},
    "falcon_h1": {"head_dim": 12},
    "qwen3_moe": {"num_experts": 4},
    "gpt_oss": {"rope_scaling": _YARN},
    "gemma3n": {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "gemma4": {"global_head_dim": 16},
    "gemma4-multimodal": {"text_config": {"global_head_dim": 16}},
}
OLDER_NAMES |= {kind: family.published for kind, family in FAMILIES.items()}
