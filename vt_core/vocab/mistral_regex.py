"""Mistral tokenizers whose `tokenizer.json` splits text in a wrong way, and the flag that corrects it.

Files that older versions of transformers wrote hold a wrong pattern. transformers replaces it if
tokenizer_config.json says `fix_mistral_regex`, under the same conditions as here.
"""

from __future__ import annotations

import re
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from vt_core.errors import ConfigError
from vt_core.files.json_files import read_object
from vt_core.vocab.added_tokens import TokenizerFiles
from vt_core.vocab.split_patterns import TEKKEN

_MODEL_TYPES = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
#: Smaller vocabularies are not Tekken's.
_LEAST_TOKENS = 100_000
_FIXED_IN = 5  #: major version of transformers that writes correct files


def fix_mistral_regex(fast: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Split text as Mistral's own tokenizer does, if the files ask for that.

    Raises:
        ConfigError: config.json is not valid.
    """
    asked = files.config.get("fix_mistral_regex")
    if not asked or fast.get_vocab_size() <= _LEAST_TOKENS or fast.pre_tokenizer is None:
        return
    path = files.where / "config.json"
    if not path.exists() or not _may_be_wrong(read_object(path, "model's configuration", ConfigError)):
        return
    split = pre_tokenizers.Split(tokenizers.Regex(TEKKEN), "isolated")
    current: Any = fast.pre_tokenizer
    if isinstance(current, pre_tokenizers.Sequence):
        current[0] = split
        return
    if isinstance(current, pre_tokenizers.Metaspace):
        current = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, current])


def _may_be_wrong(config: dict[str, Any]) -> bool:
    version = re.match(r"\d+", str(config.get("transformers_version") or "0"))
    kind = config.get("model_type")
    return (version is None or int(version[0]) < _FIXED_IN) and (kind is None or kind in _MODEL_TYPES)
