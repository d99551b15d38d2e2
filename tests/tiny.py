"""Tiny models with random weights, as Hugging Face directories, made when a test asks for them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

#: Padding rows behind the tokenizer's ids, as Qwen has them.
PADDING_ROWS = 21
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(directory: Path, words: int = 2000) -> int:
    """A byte-level tokenizer of ``words`` made-up merges; returns how many ids it has."""
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


def write_model(directory: Path, kind: str, dtype: str = "float32", seed: int = 0) -> Path:
    """A random model of one of the :data:`KINDS`, with its tokenizer."""
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    rows = write_tokenizer(directory) + PADDING_ROWS
    config_class, extra = KINDS[kind]
    config = getattr(transformers, config_class)(
        vocab_size=rows,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **extra,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that the texts are varied, biases and norms away from their neutral values. Gemma
            # multiplies its embedding by seven here, which would drown what the layers do.
            scaled = kind == "gemma3" and "embed_tokens" in name
            spread = 0.04 if scaled else 0.3 if parameter.dim() == 1 else 0.25
            parameter.add_(torch.randn_like(parameter) * spread)
    model.save_pretrained(directory)
    # transformers writes rope_parameters only, which mlx-lm does not read for these models.
    saved = json.loads((directory / "config.json").read_text())
    theta = saved.get("rope_parameters", {}).get("rope_theta")
    (directory / "config.json").write_text(json.dumps(saved | ({"rope_theta": theta} if theta else {})))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    return directory


#: Configuration class of transformers and what is particular.
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
}
