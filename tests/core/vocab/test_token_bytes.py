from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece, write
from vt_core.errors import TokenizerError
from vt_core.vocab.added_tokens import MAX_TOKENS
from vt_core.vocab.token_bytes import Kind, TokenTable, tokenizer_digest

SPECIAL = [
    added(300, "<|end|>"),
    added(301, "<tool>", special=False),
    added(302, "<|reserved_special_token_7|>"),
]


def test_bytes_of_byte_level_tokens() -> None:
    table = TokenTable.from_json(byte_level([" the", "é", "\n\n"]))
    assert [table.bytes[id] for id in range(256)] == [bytes([byte]) for byte in range(256)]
    assert table.bytes[256:] == [b" t", b" th", b" the", "é".encode(), b"\n\n"]


def test_bytes_of_sentencepiece_tokens() -> None:
    table = TokenTable.from_json(sentencepiece([" the"], "Wé"))
    assert table.bytes[1 + 0x0A] == b"\n"
    assert table.bytes[1 + 0xE4] == b"\xe4"
    assert table.bytes[257:260] == [b" t", b" th", b" the"]
    assert b" " in table.bytes[260:] and "é".encode() in table.bytes[260:]


@pytest.mark.parametrize("data", [byte_level([" the", "hé"]), sentencepiece([" the", "hé"], "o")])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_bytes_of_encoded_ids_join_to_the_text(data: dict, text: str) -> None:
    text = text.replace("\u2581", "")  # SentencePiece's mark of a space
    table = TokenTable.from_json(data)
    ids = Tokenizer.from_str(json.dumps(data)).encode(text, add_special_tokens=False).ids
    assert b"".join(table.bytes[id] or b"" for id in ids) == text.encode()


def test_unigram_vocabulary() -> None:
    data = sentencepiece(["ab"], fallback=False)
    data["model"]["vocab"] = [["<unk>", 0.0], ["\u2581ab", -1.5], ["b", -2.0]]
    table = TokenTable.from_json(data)
    assert table.bytes == [b"<unk>", b" ab", b"b"]


def test_kinds() -> None:
    table = TokenTable.from_json(byte_level(["ab"], SPECIAL))
    assert table.kinds[ord("a")] == Kind.ORDINARY
    assert table.kinds[0x80] == Kind.BYTE
    assert table.kinds[256] == Kind.ORDINARY
    assert table.kinds[257] == Kind.MISSING and table.bytes[257] is None
    assert list(table.kinds[300:]) == [Kind.SPECIAL, Kind.ADDED, Kind.UNUSED]
    fallback = TokenTable.from_json(sentencepiece(["ab"]))
    assert fallback.kinds[1 + 0x41] == Kind.BYTE
    assert fallback.kinds[257] == Kind.ORDINARY


@pytest.mark.parametrize(
    "token",
    [
        "<unused12>",
        "<|reserved_special_token_250|>",
        "<reserved_106>",
        "<|reserved_200013|>",
        "[PAD151665]",
        "[unused3]",
        "<|placeholder4|>",
        "<｜place▁holder▁no▁0｜>",
        "<|dummy_12|>",
        "<SPECIAL_31>",
        "<|extra_3|>",
        "[UNUSED_TOKEN_141]",
    ],
)
def test_unused_tokens_are_neither_special_nor_ordinary(token: str) -> None:
    table = TokenTable.from_json(byte_level((), [added(256, token)]))
    assert table.kinds[256] == Kind.UNUSED
    assert table.special_ids(1000).size == 0


@pytest.mark.parametrize("token", ["<pad>", "[PAD]", "<unk>", "<|vision_pad|>", "<mask>", "[INST]"])
def test_control_tokens_are_not_unused(token: str) -> None:
    assert TokenTable.from_json(byte_level((), [added(256, token)])).kinds[256] == Kind.SPECIAL


def test_special_ids_include_added_tokens_below_v() -> None:
    table = TokenTable.from_json(byte_level((), SPECIAL))
    assert table.special_ids(302).tolist() == [300, 301]
    assert table.special_ids(301).tolist() == [300]


def test_digest_ignores_padding_and_special_token_flags() -> None:
    hugging_face = byte_level([" the"], [added(259, "<|end|>"), added(260, "<think>", special=False)])
    gguf = copy.deepcopy(hugging_face)
    gguf["added_tokens"] = [added(259, "<|end|>"), added(260, "[PAD260]"), added(261, "[PAD261]")]
    assert TokenTable.from_json(gguf).digest() == TokenTable.from_json(hugging_face).digest()


def test_digest_ignores_unused_ids() -> None:
    listed = byte_level([" the"])
    listed["model"]["vocab"]["<unused0>"] = 259
    assert TokenTable.from_json(listed).digest() == TokenTable.from_json(byte_level([" the"])).digest()


def test_digest_depends_on_tokens_and_ids() -> None:
    digests = {
        TokenTable.from_json(data).digest()
        for data in (
            byte_level(),
            byte_level([" a"]),
            byte_level([" b"]),
            byte_level([" a", " b"]),
            sentencepiece(),
        )
    }
    assert len(digests) == 5
    moved = byte_level([" a"])
    moved["model"]["vocab"]["\u0120a"] = 257
    assert TokenTable.from_json(moved).digest() not in digests


def test_digest_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, byte_level([" a"]))
    assert tokenizer_digest(path) == TokenTable.load(path).digest()


def test_text_escapes_partial_characters() -> None:
    table = TokenTable.from_json(byte_level(["é"]))
    assert table.text(256) == "é"
    assert table.text(0xE9) == "\\xe9"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(vocab={"a": -1}), "token id -1"),
        (lambda d: d["model"].update(vocab={"a": MAX_TOKENS}), f"token id {MAX_TOKENS}"),
        (lambda d: d["model"].update(vocab={"a": True}), "token id True"),
        (lambda d: d["model"].update(vocab=["a"]), "model.vocab"),
        (lambda d: d.update(added_tokens=[{"id": 3}]), "no 'content'"),
        (lambda d: d.update(added_tokens=[{"content": "x"}]), "token id None"),
        (lambda d: d.update(decoder={"type": "WordPiece"}, pre_tokenizer=None), "neither byte-level BPE nor"),
    ],
)
def test_wrong_content_is_refused(change, message: str) -> None:
    data = byte_level()
    change(data)
    with pytest.raises(TokenizerError, match=message):
        TokenTable.from_json(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "not a JSON object"), ('{"model": 3}', "no 'model'")],
)
def test_other_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=f"{path}.*{message}"):
        TokenTable.load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.json: the tokenizer cannot be read"):
        TokenTable.load(tmp_path / "absent.json")
