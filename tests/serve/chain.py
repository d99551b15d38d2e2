"""A model that writes one fixed list of tokens after any prompt, and its tokenizer, as files."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from tests.tiny import write_tokenizer

END = "<|im_end|>"


def write_chain(directory: Path, tokens: Sequence[str], special: Collection[str], template: str) -> Path:
    """Write a Llama whose next token depends on the last one only.

    Args:
        directory: for the model.
        tokens: what it writes, each once, before it ends; each becomes a token.
        special: those that are special tokens.
        template: the chat template.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir()
    write_tokenizer(directory, words=100)
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken(token, special=token in special, normalized=False) for token in tokens])
    tokenizer.save(str(path))
    config_path = directory / "tokenizer_config.json"
    config = json.loads(config_path.read_text()) | {"eos_token": END, "chat_template": template}
    config_path.write_text(json.dumps(config))

    script = [tokenizer.token_to_id(token) for token in (*tokens, END)]
    assert len(set(script)) == len(script) <= 64
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            eos_token_id=script[-1],
            **shape,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(weight.dim() == 1)  # norms of one, and layers that add nothing
        # Every token stands for the beginning, apart from those of the list: they stand for what comes next.
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, 0] = 1
        for place, token in enumerate(script):
            head[token, place] = 1
            embedding[token] = torch.eye(64)[(place + 1) % len(script)]
    model.generation_config.eos_token_id = script[-1]
    model.save_pretrained(directory)
    return directory
