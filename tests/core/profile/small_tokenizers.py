"""Makes small tokenizer.json files with known ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPELLING = {
    byte: chr(byte) if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE else ""
    for byte in range(256)
}
_unprintable = [byte for byte in range(256) if not SPELLING[byte]]
SPELLING.update({byte: chr(0x100 + i) for i, byte in enumerate(_unprintable)})


def spelled(value: bytes) -> str:
    """Bytes in the alphabet of GPT-2's tokenizer."""
    return "".join(SPELLING[byte] for byte in value)


def added(id: int, content: str, special: bool = True) -> dict[str, Any]:
    return {
        "id": id,
        "content": content,
        "special": special,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }


def byte_level(
    words: Sequence[str | bytes] = (), extra: Sequence[dict[str, Any]] = (), normalizer: Any = None
) -> dict[str, Any]:
    """A byte-level BPE: ids 0 to 255 are the bytes, then all prefixes of each word, merged from the left."""
    vocab = {SPELLING[byte]: byte for byte in range(256)}
    merges: list[list[str]] = []
    for word in words:
        value = word.encode() if isinstance(word, str) else word
        for end in range(2, len(value) + 1):
            token = spelled(value[:end])
            if token not in vocab:
                vocab[token] = len(vocab)
                merges.append([spelled(value[: end - 1]), spelled(value[end - 1 : end])])
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return _file(vocab, merges, extra, normalizer, pre_tokenizer=byte_step, decoder=byte_step)


def sentencepiece(
    words: Sequence[str] = (),
    characters: str = "",
    extra: Sequence[dict[str, Any]] = (),
    fallback: bool = True,
) -> dict[str, Any]:
    """A SentencePiece BPE: `<unk>` (0), bytes (1 to 256), prefixes of the words, then single characters."""
    vocab = {"<unk>": 0}
    if fallback:
        vocab.update({f"<0x{byte:02X}>": byte + 1 for byte in range(256)})
    words = [word.replace(" ", "\u2581") for word in words]
    merges: list[list[str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
    for character in "".join(words) + characters.replace(" ", "\u2581"):
        vocab.setdefault(character, len(vocab))
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    file = _file(vocab, merges, [added(0, "<unk>"), *extra], normalizer, pre_tokenizer=None, decoder=decoder)
    file["model"].update(byte_fallback=fallback, unk_token="<unk>", fuse_unk=True)
    return file


def _file(
    vocab: dict[str, int],
    merges: list[list[str]],
    extra: Sequence[dict[str, Any]],
    normalizer: Any,
    pre_tokenizer: Any,
    decoder: Any,
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(extra),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def write(directory: Path, data: dict[str, Any]) -> Path:
    """Write `tokenizer.json` into a directory. Returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path
