from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from tests.tiny import write_tokenizer
from vt_core.errors import PromptError, TokenizerError
from vt_core.vocab.token_bytes import TokenTable
from vt_core.vocab.tokenizer import Tokenizer


@pytest.fixture
def byte_level(tmp_path):
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)


@pytest.fixture
def byte_fallback(tmp_path):
    """As in Llama 2 and Gemma: words with a marked space, and a token for every byte."""
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


@pytest.mark.parametrize("text", ["plain words", "naïve 日本語 🙂🙃", " two  spaces\n\n", "ab" * 50])
def test_streamed_pieces_add_up_to_the_text(byte_level, text):
    ids = byte_level.encode(text).tolist()
    pieces, rest = streamed(byte_level, ids)
    assert "".join(pieces) + rest == text
    assert "\ufffd" not in "".join(pieces)


def test_a_character_comes_with_its_last_byte(byte_level):
    ids = byte_level.encode("é!").tolist()
    assert len(ids) == 3
    assert streamed(byte_level, ids) == (["", "é", "!"], "")


def test_byte_tokens_before_an_unfinished_character_do_not_fail(byte_fallback):
    def byte(value):
        return 4 + value

    newline, start = byte(0x0A), byte(0xF0)
    pieces, rest = streamed(byte_fallback, [newline, start, 1])
    assert "".join(pieces) + rest == "\n\ufffd hello"
    assert streamed(byte_fallback, [1, start]) == (["hello", ""], "\ufffd")
    smile = [byte(value) for value in "🙂".encode()]
    assert streamed(byte_fallback, [1, *smile, 1]) == (["hello", "", "", "", "🙂", " hello"], "")


def test_special_tokens_are_no_text(byte_level):
    ids = [1, *byte_level.encode("ab").tolist(), 2]
    pieces, rest = streamed(byte_level, ids)
    assert "".join(pieces) + rest == byte_level.decode(ids) == "ab"


def test_eos_ids_are_the_union_of_all_that_name_one(tmp_path):
    write_tokenizer(tmp_path)  # its own: <|endoftext|> 0, and <|im_end|> 2 ends a turn
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert Tokenizer(tmp_path).eos_ids(2000) == {0, 2, 7, 8, 9}
    assert Tokenizer(tmp_path).eos_ids(8) == {0, 2, 7}


def test_text_that_is_no_utf8_is_refused(byte_level):
    with pytest.raises(PromptError, match="no UTF-8 text"):
        byte_level.encode("ab\udcff")


def test_a_template_that_refuses_says_why(byte_level):
    with pytest.raises(PromptError, match="refuses these messages"):
        byte_level.chat_template = "{{ raise_exception('roles must alternate') }}"
        byte_level.encode_chat([{"role": "user", "content": "hi"}])


def test_a_model_without_a_template_says_so(byte_fallback):
    with pytest.raises(PromptError, match="no chat template"):
        byte_fallback.encode_chat([{"role": "user", "content": "hi"}])


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        Tokenizer(tmp_path)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
THINKING = (
    "{{ bos_token }}{{ start_of_image_token }}"
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


@pytest.fixture(params=["one", "named", "file"])
def thinking(tmp_path, request):
    """A tokenizer whose template has arguments and tools; as a file, alone, or one of two by name."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.add_tokens(["<think>", "</think>", "<img>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    config |= {"start_of_image_token": "<img>", "chat_template": THINKING}
    if request.param == "file":
        (tmp_path / "chat_template.jinja").write_text(config.pop("chat_template"))
    elif request.param == "named":
        config["chat_template"] = [
            {"name": "default", "template": THINKING},
            {"name": "tool_use", "template": "TOOLS " + THINKING},
        ]
    path.write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [{}, {"enable_thinking": False}, {"tools": TOOLS}, {"tools": TOOLS, "enable_thinking": True}]
)
def test_templates_with_arguments_and_tools_give_what_transformers_gives(thinking, arguments):
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "the <think> naïve"}]
    theirs = AutoTokenizer.from_pretrained(thinking)
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **arguments
    )
    tokenizer = Tokenizer(thinking)
    assert tokenizer.encode_chat(messages, **arguments).tolist() == expected
    text = tokenizer.render_chat(messages, **arguments)
    assert ("<tool>" in text, "</think>" in text) == (
        "tools" in arguments, not arguments.get("enable_thinking", True)
    )  # fmt: skip
    assert tokenizer.id_of("<think>") in expected
    # Added tokens that are not special are text: who parses thoughts or calls must see them.
    assert tokenizer.decode([tokenizer.id_of("<think>")]) == "<think>"


def test_rows_behind_the_last_token_are_counted_off(thinking):
    tokens = len(FastTokenizer.from_file(str(thinking / "tokenizer.json")).get_vocab())
    tokenizer = Tokenizer(thinking)
    assert [tokenizer.size(rows) for rows in (tokens + 300, tokens, tokens - 1)] == [
        tokens,
        tokens,
        tokens - 1,
    ]


def test_added_ids_are_those_of_the_token_table(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    fast = FastTokenizer.from_file(str(file))
    fast.add_tokens(["<think>", "<unused7>", "<|reserved_special_token_3|>", "[PAD12]", "ab"])
    fast.save(str(file))
    added = Tokenizer(tmp_path).added_ids()
    assert added == set(TokenTable.load(file).special_ids(1 << 20).tolist())
    assert {fast.token_to_id("<think>"), fast.token_to_id("<|im_end|>")} < added
    assert fast.token_to_id("<unused7>") not in added
