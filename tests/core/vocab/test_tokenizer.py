from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from tests.tiny import write_tokenizer
from vt_core.errors import ConfigError, PromptError, TokenizerError
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer


@pytest.fixture
def byte_level(tmp_path):
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)


@pytest.fixture
def byte_fallback(tmp_path):
    """As in Llama 2 and Gemma: spaces are marked, and every byte has a token."""
    pieces = {"<unk>": 0, "▁hello": 1, "▁": 2, "hi": 3}
    vocabulary = pieces | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = FastTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path)


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    return pieces, stream.finish()


def test_special_tokens_are_streamed_where_they_are_wanted(byte_fallback):
    byte_fallback._fast.add_special_tokens(["<call>"])
    call = byte_fallback.id_of("<call>")
    stream = byte_fallback.stream({call: "<call>"})
    ids = [1, call, 1, 4 + 0xC3, call, call, 3]
    assert [stream.push(token) for token in ids] == [
        "hello", "<call>", " hello", "", "\ufffd<call>", "<call>", "hi",
    ]  # fmt: skip
    assert stream.finish() == "" and streamed(byte_fallback, [1, call, 1]) == (["hello", "", " hello"], "")


@pytest.mark.parametrize("text", ["plain words", "naïve 日本語 🙂🙃", " two  spaces\n\n", "ab" * 50])
def test_streamed_pieces_join_to_the_text(byte_level, text):
    ids = byte_level.encode(text).tolist()
    pieces, rest = streamed(byte_level, ids)
    assert "".join(pieces) + rest == text
    assert "\ufffd" not in "".join(pieces)


def test_character_is_streamed_with_its_last_byte(byte_level):
    ids = byte_level.encode("é!").tolist()
    assert len(ids) == 3
    assert streamed(byte_level, ids) == (["", "é", "!"], "")


def test_unfinished_character_becomes_a_replacement_character(byte_fallback):
    def byte(value):
        return 4 + value

    newline, start = byte(0x0A), byte(0xF0)
    pieces, rest = streamed(byte_fallback, [newline, start, 1])
    assert "".join(pieces) + rest == "\n\ufffd hello"
    assert streamed(byte_fallback, [1, start]) == (["hello", ""], "\ufffd")
    smile = [byte(value) for value in "🙂".encode()]
    assert streamed(byte_fallback, [1, *smile, 1]) == (["hello", "", "", "", "🙂", " hello"], "")


def test_special_tokens_are_left_out_of_text(byte_level):
    ids = [1, *byte_level.encode("ab").tolist(), 2]
    pieces, rest = streamed(byte_level, ids)
    assert "".join(pieces) + rest == byte_level.decode(ids) == "ab"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, {7, 8, 9}),
        ({}, {"text_config": {"eos_token_id": [7, 8]}}, {7, 8}),
        ({"eos_token_id": None}, {"eos_token_id": None, "text_config": {"eos_token_id": 7}}, {7}),
        # Another file names one, so that of the nested model is not looked at.
        ({"eos_token_id": 7}, {"text_config": {"eos_token_id": 8}}, {7}),
        ({}, {"eos_token_id": 7, "text_config": {"eos_token_id": 8}}, {7}),
        ({"eos_token_id": [7, 5000, -1]}, {}, {7}),
    ],
)
def test_eos_ids_are_the_union_of_files_and_turn_ends(tmp_path, generation, config, expected):
    write_tokenizer(tmp_path)  # names <|endoftext|>, 0; <|im_end|>, 2, ends a turn
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Tokenizer(tmp_path).eos_ids(2000) == {0, 2} | expected


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["2", 2.0, True, [[2]], [None], {"id": 2}])
def test_eos_that_is_not_an_id_is_refused(tmp_path, file, value):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ConfigError, match=f"{file}: eos_token_id holds"):
        Tokenizer(tmp_path)


def test_text_that_is_not_utf8_is_refused(byte_level):
    with pytest.raises(PromptError, match="not UTF-8 text"):
        byte_level.encode("ab\udcff")


def test_refusal_of_a_template_is_passed_on(byte_level):
    arguments = {"chat_template": "{{ raise_exception('roles must alternate') }}"}
    with pytest.raises(PromptError, match=r"refuses these messages \(roles must alternate\)"):
        byte_level.encode_chat([{"role": "user", "content": "hi"}], **arguments)


def test_chat_without_a_template_is_refused(byte_fallback):
    with pytest.raises(PromptError, match="no chat template"):
        byte_fallback.encode_chat([{"role": "user", "content": "hi"}])


def test_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        Tokenizer(tmp_path)


@pytest.fixture
def with_added(tmp_path):
    """A directory whose tokenizer has ordinary, special and reserved added tokens."""
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    fast = FastTokenizer.from_file(str(file))
    fast.add_tokens(["<think>", "<unused7>", "<|reserved_special_token_3|>", "[PAD12]", "ab"])
    fast.save(str(file))
    return fast


def test_padding_rows_are_not_counted(with_added, tmp_path):
    tokens = with_added.get_vocab_size()
    tokenizer = Tokenizer(tmp_path)
    assert [tokenizer.size(tokens + more) for more in (300, 0, -1)] == [tokens, tokens, tokens - 1]


def test_added_ids_match_token_table(with_added, tmp_path):
    added = Tokenizer(tmp_path).added_ids()
    assert added == set(TokenTable.load(tmp_path / "tokenizer.json").special_ids(1 << 20).tolist())
    assert {with_added.token_to_id("<think>"), with_added.token_to_id("<|im_end|>")} < added
    assert with_added.token_to_id("<unused7>") not in added


def test_added_tokens_that_are_not_special_are_text(with_added, tmp_path):
    """Whoever parses thoughts or tool calls must see their marks."""
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode([tokenizer.id_of("<think>"), 2]) == "<think>"


def component(tmp_path, **parts):
    """A tokenizer with other parts than those of `write_tokenizer`."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return tmp_path


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replace({"String": "a"}, "b" * 100)},
        {"normalizer": replace({"Regex": "a*"}, "b" * 100)},
        {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 30}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 1000}},
        {
            "decoder": {
                "type": "Sequence",
                "decoders": [{"type": "Fuse"}, replace({"String": "a"}, "b" * 100)],
            }
        },
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "x", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"x": {"id": "x", "ids": [1] * 5000, "tokens": ["x"] * 5000}},
            }
        },
    ],
)
def test_tokenizer_that_multiplies_texts_is_refused(tmp_path, parts):
    with pytest.raises(TokenizerError, match=r"lengthens texts|adds more than"):
        Tokenizer(component(tmp_path, **parts))


def test_panic_of_the_library_is_an_error(tmp_path):
    """Its Rust code panics where a regular expression backtracks too long."""
    pattern = {"Regex": "(a+)+$"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer(component(tmp_path, pre_tokenizer=split))
    with pytest.raises(TokenizerError, match="fails to encode this text"):
        tokenizer.encode("a" * 40 + "b")
