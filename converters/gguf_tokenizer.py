"""tokenizer.json, tokenizer_config.json and chat_template.jinja out of a GGUF file's vocabulary.

Three kinds: byte-level BPE ("gpt2"), whose merges are in the file and whose pre-tokenizer it names;
SentencePiece BPE ("llama"), which has scores in place of merges: every way to put a piece together from two
others is a merge; and Gemma 4's ("gemma4"), which is SentencePiece with merges and no space before the text.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from converters.gguf_file import GGUFFile, StringArray
from converters.gguf_pretokenizers import Pretokenizer, pretokenizer_of
from vt_core.errors import TokenizerError

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BATCH = 8192

Merges = tuple[np.ndarray, np.ndarray]


class Vocabulary:
    """The tokens of a GGUF file, with their types and scores, checked against one another.

    Raises:
        TokenizerError: the vocabulary is missing, inconsistent, or of an unsupported kind.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.kind = file.text("tokenizer.ggml.model")
        if self.kind not in ("gpt2", "llama", "gemma4"):
            raise self.fail(
                f"its tokenizer is of the kind {self.kind!r}; 'gpt2' (byte-level BPE), 'llama' "
                "(SentencePiece) and 'gemma4' are supported."
            )
        self.tokens = self._strings("tokens")
        if not self.tokens:
            raise self.fail("its tokenizer has no tokens.")
        types = self._numbers("token_type", np.int64)
        self.types = np.full(len(self.tokens), NORMAL) if types is None else types
        if self.kind == "llama":
            # GGUF files spell these with plain spaces, the tokenizer sees them after its normalizer.
            for id in np.flatnonzero(self.types == USER_DEFINED).tolist():
                self.tokens[id] = self.tokens[id].replace(" ", SPACE)

    def fail(self, sentence: str) -> TokenizerError:
        return TokenizerError(f"{self.file.path}: {sentence}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"tokenizer.ggml.{key}", default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, int):
            raise self.fail(f"tokenizer.ggml.{key} is neither true nor false.")
        return bool(value)

    def _strings(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, StringArray):
            raise self.fail(f"it has no tokenizer.ggml.{key}, without which text cannot be encoded.")
        return value.decode()

    def _numbers(self, key: str, dtype: type) -> np.ndarray | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise self.fail(
                f"tokenizer.ggml.{key} has not one value for each of the {len(self.tokens)} tokens."
            )
        if not np.isfinite(value).all():
            raise self.fail(f"tokenizer.ggml.{key} holds values that are not finite numbers.")
        return value.astype(dtype)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id, without padding and empty entries; of a duplicate token, the first."""
        ids: dict[str, int] = {}
        padding = (self.types == UNUSED).tolist()
        for id, token in enumerate(self.tokens):
            if token and not (padding[id] and token == f"[PAD{id}]"):
                ids.setdefault(token, id)
        return ids

    def token(self, key: str, default: int | None = None, *, used: bool = False) -> str | None:
        """The token that `tokenizer.ggml.{key}` names by its id; None where it names none.

        As in llama.cpp, an id outside the table (-1, the number of tokens) stands for the default, unless the
        token is `used` in every text.
        """
        id = self.get(key, default)
        if id is None:
            return None
        for candidate in (id, default):
            if isinstance(candidate, int) and 0 <= candidate < len(self.tokens):
                token = self.tokens[candidate]
                if token in self.ids:
                    return token
        if used or not isinstance(id, int):
            raise self.fail(
                f"tokenizer.ggml.{key} is {id!r}, which is none of the {len(self.tokens)} tokens."
            )
        return None

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are cut out of the text before it is split, in the form of tokenizer.json."""
        return [
            {
                "id": id,
                "content": self.tokens[id],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[id].item() != USER_DEFINED,
            }
            for id in np.flatnonzero(np.isin(self.types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
            if self.ids.get(self.tokens[id]) == id
        ]

    def stored_merges(self) -> Merges:
        """Left and right ids of the file's merges, best first."""
        lefts, rights = array("q"), array("q")
        get = self.ids.get
        for merge in self._strings("merges"):
            # A piece may begin with a space, the separator, so the search starts at the second character.
            cut = merge.find(" ", 1)
            left, right = get(merge[:cut]), get(merge[cut + 1 :])
            if cut < 0 or left is None or right is None or merge[:cut] + merge[cut + 1 :] not in self.ids:
                raise self.fail(f"the merge {merge!r} is not one of two tokens into a third.")
            lefts.append(left)
            rights.append(right)
        return np.array(lefts), np.array(rights)

    def derived_merges(self) -> Merges:
        """Left and right ids of every pair of pieces that makes up a third, in the order of its score.

        Best score first; among equals the longer left piece, the longer right piece, then by ids: the order
        in which Hugging Face lists them. Pieces that the user defined are always kept whole, so they come
        first; GGUF gives them a score that would put them last.
        """
        left, right, whole = self._splits()
        scores = self._numbers("scores", np.float64)
        normal = self.types == NORMAL
        if scores is None or len(np.unique(scores[normal])) < 2:
            # Equal scores carry no order; ids follow the order of the merges.
            scores = -np.arange(len(self.tokens), dtype=np.float64)
        scores = np.where(normal, scores, 0.0)
        lengths = np.array([len(token) for token in self.tokens])
        order = np.lexsort((right, left, whole, -lengths[right], -lengths[left], -scores[whole]))
        return left[order], right[order]

    def _splits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lefts, rights, wholes = array("q"), array("q"), array("q")
        get = self.ids.get
        for token, id in self.ids.items():
            for cut in range(1, len(token)):
                left = get(token[:cut])
                if left is not None:
                    right = get(token[cut:])
                    if right is not None:
                        lefts.append(left)
                        rights.append(right)
                        wholes.append(id)
        return np.array(lefts, np.int64), np.array(rights, np.int64), np.array(wholes, np.int64)


@dataclass(frozen=True)
class Parts:
    """The parts of tokenizer.json in which the kinds of vocabulary differ."""

    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any]
    model: dict[str, Any]
    merges: Merges
    add_bos: bool


def write_tokenizer(file: GGUFFile, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja into `out`.

    Raises:
        TokenizerError: the vocabulary cannot be used.
    """
    vocabulary = Vocabulary(file)
    parts = _byte_level(vocabulary) if vocabulary.kind == "gpt2" else _sentence_piece(vocabulary)
    add_bos = vocabulary.flag("add_bos_token", parts.add_bos)
    add_eos = vocabulary.flag("add_eos_token", False)
    bos = vocabulary.token("bos_token_id", 1 if vocabulary.kind == "llama" else None, used=add_bos)
    eos = vocabulary.token("eos_token_id", 2 if vocabulary.kind == "llama" else None, used=add_eos)
    before = [bos] if add_bos and bos is not None else []
    after = [eos] if add_eos and eos is not None else []
    with open(out / "tokenizer.json", "w", encoding="utf-8") as target:
        _write_json(target, vocabulary, parts, _template(vocabulary, before, after))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": vocabulary.token("padding_token_id"),
        "unk_token": vocabulary.token("unknown_token_id", 0 if vocabulary.kind == "llama" else None),
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(
        {key: value for key, value in config.items() if value is not None}, ensure_ascii=False, indent=2
    )
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if chat_template := file.text("tokenizer.chat_template"):
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="")


def _byte_level(vocabulary: Vocabulary) -> Parts:
    pretokenizer: Pretokenizer = pretokenizer_of(vocabulary.file)
    return Parts(
        normalizer=pretokenizer.normalizer,
        pre_tokenizer=pretokenizer.json(),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        # Some vocabularies lack a few bytes. Their tokenizers drop these bytes and ignore the unknown token.
        model=_bpe(None, ignore_merges=pretokenizer.ignore_merges),
        merges=vocabulary.stored_merges(),
        add_bos=pretokenizer.add_bos,
    )


def _sentence_piece(vocabulary: Vocabulary) -> Parts:
    has_scores = vocabulary.kind == "llama"
    prefix = vocabulary.flag("add_space_prefix", has_scores)
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, to_mark] if prefix else [to_mark]
    decoders = [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    stored = isinstance(vocabulary.get("merges"), StringArray) or not has_scores
    return Parts(
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(
            vocabulary.token("unknown_token_id", 0 if has_scores else None),
            byte_fallback=bool(np.any(vocabulary.types == BYTE)),
        ),
        merges=vocabulary.stored_merges() if stored else vocabulary.derived_merges(),
        add_bos=True,
    )


def _bpe(unknown: str | None, *, byte_fallback: bool = False, ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
    }


def _template(vocabulary: Vocabulary, before: list[str], after: list[str]) -> dict[str, Any] | None:
    """The post-processor that puts BOS before and EOS after each text; None for neither."""
    if not before and not after:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def special(token: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": token, "type_id": type_id}}

        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*map(special, before), text, *map(special, after)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]}
            for token in before + after
        },
    }


def _write_json(
    target: TextIO, vocabulary: Vocabulary, parts: Parts, post_processor: dict[str, Any] | None
) -> None:
    """Write tokenizer.json in pieces: built whole, Gemma's takes 300 MB."""
    head = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
    }
    target.write(_dumps(head)[:-1] + ',"model":' + _dumps(parts.model)[:-1] + ',"vocab":{')
    _write_joined(target, (_dumps(dict(batch))[1:-1] for batch in _batches(vocabulary.ids.items())))
    target.write('},"merges":[')
    tokens = vocabulary.tokens
    pairs = (
        [tokens[left], tokens[right]]
        for left, right in zip(*(ids.tolist() for ids in parts.merges), strict=True)
    )
    _write_joined(target, (_dumps(batch)[1:-1] for batch in _batches(pairs)))
    target.write("]}}\n")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _write_joined(target: TextIO, texts: Iterable[str]) -> None:
    for index, text in enumerate(texts):
        target.write("," + text if index else text)
