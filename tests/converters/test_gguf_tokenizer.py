from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from converters.gguf_file import GGUFFile
from converters.gguf_pretokenizers import PRETOKENIZERS, pretokenizer_of
from converters.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    write_tokenizer,
)
from tests.converters.gguf_writer import write_gguf
from vt_core.errors import TokenizerError
from vt_core.vocab.token_bytes import Kind, TokenTable

BYTES = [chr(b) for b in range(0x21, 0x7F)] + [chr(b) for b in [*range(0xA1, 0xAD), *range(0xAE, 0x100)]]
ALPHABET = BYTES + [chr(256 + i) for i in range(256 - len(BYTES))]


def open_file(path: Path, kind: str, pieces: list[tuple[str, int]], **keys: Any) -> GGUFFile:
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": [text for text, _ in pieces],
        "tokenizer.ggml.token_type": np.array([type for _, type in pieces]),
    }
    further = {(key if "." in key else f"tokenizer.ggml.{key}"): value for key, value in keys.items()}
    kept = {key: value for key, value in {**metadata, **further}.items() if value is not None}
    return GGUFFile(write_gguf(path / "model.gguf", kept))


def convert(tmp_path: Path, *arguments: Any, **keys: Any) -> Tokenizer:
    write_tokenizer(open_file(tmp_path, *arguments, **keys), tmp_path)
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def byte_level(*extra: tuple[str, int], merges: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of a byte-level vocabulary: all bytes, what the merges make, then `extra`."""
    merged = [(merge.replace(" ", ""), NORMAL) for merge in merges]
    pieces = [*((byte, NORMAL) for byte in ALPHABET), *merged, *extra]
    return {"kind": "gpt2", "pieces": pieces, "merges": list(merges)}


def texts(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    return [tokenizer.id_to_token(id) for id in ids]


def test_byte_level_merges_in_the_order_of_the_file(tmp_path):
    tokenizer = convert(tmp_path, **byte_level(merges=("l l", "h e", "he ll", "Ġ w", "e l")), pre="gpt-2")
    assert tokenizer.encode("hello well").tokens == ["hell", "o", "Ġw", "e", "ll"]
    assert tokenizer.decode(tokenizer.encode("héllo ☺\n").ids) == "héllo ☺\n"


def test_added_tokens_are_cut_out_and_only_control_tokens_are_special(tmp_path):
    extra = [("<|end|>", CONTROL), ("<think>", USER_DEFINED), ("<unk>", UNKNOWN)]
    tokenizer = convert(tmp_path, **byte_level(*extra), pre="gpt-2")
    ids = tokenizer.encode("a<|end|><think>b<unk>").ids
    assert texts(tokenizer, ids) == ["a", "<|end|>", "<think>", "b", "<unk>"]
    assert ids[1] == len(ALPHABET)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"


def test_padding_entries_are_left_out_and_other_ids_stay(tmp_path):
    extra = [(f"[PAD{len(ALPHABET)}]", UNUSED), ("<|end|>", CONTROL), ("[PAD7]", UNUSED), ("", UNUSED)]
    tokenizer = convert(tmp_path, **byte_level(*extra), pre="gpt-2")
    assert tokenizer.token_to_id("<|end|>") == len(ALPHABET) + 1
    assert tokenizer.id_to_token(len(ALPHABET)) is None
    assert tokenizer.token_to_id("[PAD7]") == len(ALPHABET) + 2, "a token that only looks like padding"
    assert tokenizer.get_vocab_size() == len(ALPHABET) + 2
    kinds = TokenTable.load(tmp_path / "tokenizer.json").kinds
    assert (kinds[len(ALPHABET)], kinds[len(ALPHABET) + 1]) == (Kind.MISSING, Kind.SPECIAL)


def test_of_a_token_given_twice_the_first_counts(tmp_path):
    twice = [("!", NORMAL), ("<x>", CONTROL), ("<x>", CONTROL), ("<y>", CONTROL)]
    tokenizer = convert(tmp_path, **byte_level(*twice), pre="gpt-2")
    first = len(ALPHABET) + 1
    assert tokenizer.encode("!<x><y>").ids == [0, first, first + 2]


def test_bytes_that_a_vocabulary_lacks_are_dropped(tmp_path):
    arguments = byte_level(("<|end|>", CONTROL))
    arguments["pieces"] = arguments["pieces"][1:]  # no "!"
    tokenizer = convert(tmp_path, **arguments, pre="gpt-2", unknown_token_id=len(ALPHABET) - 1)
    assert tokenizer.encode("a!b").tokens == ["a", "b"]


@pytest.mark.parametrize(
    ("add_bos", "add_eos", "expected"),
    [
        (None, None, ["a"]),
        (False, False, ["a"]),
        (True, False, ["<s>", "a"]),
        (True, True, ["<s>", "a", "</s>"]),
        (False, True, ["a", "</s>"]),
    ],
)
def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path, add_bos, add_eos, expected):
    ends = {"bos_token_id": len(ALPHABET), "eos_token_id": len(ALPHABET) + 1}
    flags = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    tokenizer = convert(
        tmp_path, **byte_level(("<s>", CONTROL), ("</s>", CONTROL)), pre="gpt-2", **ends, **flags
    )
    assert tokenizer.encode("a").tokens == expected
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]
    assert len(tokenizer.encode("a", "a").tokens) == 2 * len(expected)


def test_llama3_adds_bos_and_keeps_words_that_are_tokens(tmp_path):
    arguments = byte_level(("<s>", CONTROL), ("Ġhello", NORMAL), merges=("h e",))
    bos = len(arguments["pieces"]) - 2
    assert convert(tmp_path, **arguments, pre="llama-bpe", bos_token_id=bos).encode("he hello").tokens == [
        "<s>", "he", "Ġhello",
    ]  # fmt: skip
    plain = convert(tmp_path, **arguments, pre="gpt-2", bos_token_id=bos)
    assert plain.encode("he hello").tokens == ["he", "Ġ", "he", "l", "l", "o"]


def test_tokenizer_config_and_chat_template(tmp_path):
    ids = {
        role: len(ALPHABET) + i
        for i, role in enumerate(["bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id"])
    }
    extra = [(f"<{role}>", CONTROL) for role in ("bos", "eos", "pad", "unk")]
    template = "{% for message in messages %}\r\n{{ message }}☺{% endfor %}\n"
    convert(tmp_path, **byte_level(*extra), pre="gpt-2", **ids, **{"tokenizer.chat_template": template})
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    assert (tmp_path / "chat_template.jinja").read_bytes() == template.encode()


def test_unnamed_special_tokens_are_not_written(tmp_path):
    convert(tmp_path, **byte_level(), pre="gpt-2")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not {"bos_token", "eos_token", "pad_token", "unk_token"} & config.keys()
    assert not (tmp_path / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "It's 3456x   y", ["It", "'s", " 3456", "x", "  ", " y"]),
        ("gpt-2", "IT'S a\n\n b", ["IT", "'", "S", " a", "\n\n", " b"]),
        ("smollm", "It's 3456x   y", ["It", "'s", " ", "3", "4", "5", "6", "x", "  ", " y"]),
        ("qwen2", "It'S 3456x   y", ["It", "'S", " ", "3", "4", "5", "6", "x", "  ", " y"]),
        ("qwen2", "(a)\n\n b!!\n", ["(a", ")\n\n", " b", "!!\n"]),
        ("qwen35", "(\u0928\u0940\u0930)\n 12", ["(\u0928\u0940\u0930", ")\n", " ", "1", "2"]),
        ("qwen2", "(\u0928\u0940\u0930)", ["(\u0928", "\u0940\u0930", ")"]),
        ("lfm2", "It's 3456x", ["It", "'s", " ", "345", "6", "x"]),
        ("llama-bpe", "It's 3456x", ["It", "'s", " ", "345", "6", "x"]),
        ("dbrx", "12345", ["123", "45"]),
        ("tekken", "HelloWorld's 12", ["Hello", "World", "'s", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld's 1234/\n", ["Hello", "World's", " ", "123", "4", "/\n"]),
    ],
)
def test_texts_are_split_as_the_named_pretokenizer_does(tmp_path, name, text, expected):
    tokenizer = convert(tmp_path, **byte_level(), pre=name)
    assert tokenizer.pre_tokenizer is not None
    spans = [text[begin:end] for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert spans == expected


def test_qwen2_composes_characters_and_others_do_not(tmp_path):
    apart = "e\u0301"
    assert len(convert(tmp_path, **byte_level(), pre="qwen2").encode(apart).ids) == 2
    assert len(convert(tmp_path, **byte_level(), pre="llama-bpe").encode(apart).ids) == 3


@pytest.mark.parametrize("pre", [None, "default"])
@pytest.mark.parametrize(
    ("architecture", "like"),
    [
        *(("qwen2", "qwen2"), ("smollm3", "llama-bpe"), ("llama", "gpt-2")),
        *(("qwen35", "qwen35"), ("lfm2", "lfm2")),
    ],
)
def test_old_files_split_as_their_architecture_does(tmp_path, architecture, like, pre):
    file = open_file(tmp_path, **byte_level(), pre=pre, **{"general.architecture": architecture})
    assert pretokenizer_of(file) == PRETOKENIZERS[like]


def test_old_llama_files_with_llama3s_vocabulary_split_as_it_does(tmp_path):
    pieces = [(f"t{i}", NORMAL) for i in range(128_256)]
    assert pretokenizer_of(open_file(tmp_path, "gpt2", pieces)) == PRETOKENIZERS["llama-bpe"]


def sentencepiece(words: list[str], **more: Any) -> dict[str, Any]:
    """Arguments of a SentencePiece vocabulary: unk, bos, eos, all bytes, then `words`, the best first."""
    head = [
        ("<unk>", UNKNOWN),
        ("<s>", CONTROL),
        ("</s>", CONTROL),
        *((f"<0x{b:02X}>", BYTE) for b in range(256)),
    ]
    scores = np.array([0.0] * len(head) + [-float(i) for i in range(len(words))])
    return {"kind": "llama", "pieces": [*head, *((word, NORMAL) for word in words)], "scores": scores, **more}


WORDS = [f"{SPACE}h", "el", f"{SPACE}hel", "lo", f"{SPACE}hello", SPACE, "h", "e", "l", "o"]


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(tmp_path):
    tokenizer = convert(tmp_path, **sentencepiece(WORDS))
    encoding = tokenizer.encode("hello hell☺")
    assert encoding.tokens == ["<s>", f"{SPACE}hello", f"{SPACE}hel", "l", "<0xE2>", "<0x98>", "<0xBA>"]
    assert tokenizer.decode(encoding.ids) == "hello hell☺"


def test_sentencepiece_without_a_space_before_the_text(tmp_path):
    tokenizer = convert(tmp_path, **sentencepiece(WORDS), add_space_prefix=False, add_bos_token=False)
    assert tokenizer.encode("hello").tokens == ["h", "el", "lo"]
    assert tokenizer.decode(tokenizer.encode(" hello").ids) == " hello"


def test_sentencepiece_without_byte_tokens_has_an_unknown_token(tmp_path):
    pieces = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), (SPACE, NORMAL), ("a", NORMAL)]
    tokenizer = convert(tmp_path, "llama", pieces, scores=np.arange(5) * -1.0)
    assert tokenizer.encode("a☺").tokens == ["<s>", SPACE, "a", "<unk>"]


def test_tokens_that_the_user_defined_stay_whole(tmp_path):
    arguments = sentencepiece(["best", f"{SPACE}a", SPACE, "a"])
    arguments["pieces"] += [("  ", USER_DEFINED), ("   ", USER_DEFINED), ("<x>", USER_DEFINED)]
    arguments["scores"] = np.append(arguments["scores"], [-1000.0] * 3)
    tokenizer = convert(tmp_path, **arguments, add_space_prefix=False, add_bos_token=False)
    assert tokenizer.encode("a  a   a a<x>").tokens == [
        "a",
        SPACE * 2,
        "a",
        SPACE * 3,
        "a",
        f"{SPACE}a",
        "<x>",
    ]
    assert tokenizer.decode(tokenizer.encode("a   a").ids) == "a   a"


def test_scores_that_are_all_one_give_way_to_the_order_of_ids(tmp_path):
    arguments = sentencepiece(["ab", "bc", SPACE, "a", "b", "c"])
    arguments["scores"] = np.full(len(arguments["pieces"]), -1000.0)
    tokenizer = convert(tmp_path, **arguments, add_bos_token=False)
    assert tokenizer.encode("abc").tokens == [SPACE, "ab", "c"]


def test_merges_of_the_file_go_before_scores(tmp_path):
    arguments = sentencepiece(["ab", "bc", SPACE, "a", "b", "c"], merges=["b c"])
    assert convert(tmp_path, **arguments, add_bos_token=False).encode("abc").tokens == [SPACE, "a", "bc"]


def test_gemma4_merges_characters_and_spaces_in_the_order_of_the_file(tmp_path):
    merges = ["l l", f"{SPACE} h", "e ll", f"{SPACE}h ell", "\n \n"]
    pieces = [*"hel\n", SPACE, *(merge.replace(" ", "") for merge in merges)]
    arguments = sentencepiece(pieces, merges=merges, bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    tokenizer = convert(tmp_path, **arguments | {"kind": "gemma4"})
    text = "hell hell\n\nó"
    encoding = tokenizer.encode(text)
    assert encoding.tokens == ["<s>", "h", "ell", f"{SPACE}hell", "\n\n", "<0xC3>", "<0xB3>"]
    assert tokenizer.decode(encoding.ids) == text


def test_gemma4_needs_merges(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer.ggml.merges"):
        convert(tmp_path, **sentencepiece(WORDS) | {"kind": "gemma4"})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab\u2581", min_size=1, max_size=5), unique=True, min_size=2), st.randoms())
def test_derived_merges_are_the_splits_in_hugging_faces_order(tmp_path_factory, words, random):
    scores = [float(random.choice([0, -1, -2, -3])) for _ in words]
    file = open_file(
        tmp_path_factory.getbasetemp(), "llama", [(w, NORMAL) for w in words], scores=np.array(scores)
    )
    if len(set(scores)) == 1:
        scores = [-float(id) for id in range(len(words))]
    ids = {word: id for id, word in enumerate(words)}
    splits = [
        (
            scores[ids[word]],
            len(word[:cut]),
            len(word[cut:]),
            -ids[word],
            -ids[word[:cut]],
            word[:cut],
            word[cut:],
        )
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    expected = [split[-2:] for split in sorted(splits, reverse=True)]
    lefts, rights = Vocabulary(file).derived_merges()
    assert [(words[left], words[right]) for left, right in zip(lefts, rights, strict=True)] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "bert"}, "of the kind 'bert'"),
        ({"model": None}, "of the kind None"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": []}, "has no tokens"),
        ({"tokens": "many"}, "has no tokenizer.ggml.tokens"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"merges": ["a b"]}, "the merge 'a b' is not"),
        ({"merges": ["a"]}, "the merge 'a' is not"),
        ({"token_type": np.array([1, 1])}, "token_type has not one value for each of the 256 tokens"),
        ({"token_type": "x"}, "token_type has not one value"),
        (
            {"bos_token_id": 256, "add_bos_token": True},
            "bos_token_id is 256, which is none of the 256 tokens",
        ),
        ({"eos_token_id": -1.5}, "eos_token_id is -1.5"),
        ({"pre": "klingon"}, "'klingon', which is not supported"),
    ],
)
def test_unusable_vocabularies_are_refused(tmp_path, changes, words):
    with pytest.raises(TokenizerError, match=words) as caught:
        convert(tmp_path, **{**byte_level(), "pre": "gpt-2", **changes})
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize("id", [256, 2**32 - 1])
def test_unused_special_ids_outside_the_table_are_ignored(tmp_path, id):
    roles = ("bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id")
    convert(tmp_path, **byte_level(), pre="gpt-2", add_bos_token=False, **dict.fromkeys(roles, id))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not config.keys() & {"bos_token", "eos_token", "pad_token", "unk_token"}


def test_special_ids_outside_the_table_stand_for_the_default(tmp_path):
    convert(tmp_path, **sentencepiece(WORDS), bos_token_id=10**6, eos_token_id=10**6)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def test_scores_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="scores has not one value"):
        convert(tmp_path, **{**sentencepiece(WORDS), "scores": np.zeros(3)})


def test_scores_that_are_not_numbers_are_refused(tmp_path):
    arguments = sentencepiece(WORDS)
    arguments["scores"][5] = np.nan
    with pytest.raises(TokenizerError, match="scores holds values that are not finite numbers"):
        convert(tmp_path, **arguments)


def test_types_may_be_missing(tmp_path):
    tokenizer = convert(tmp_path, **byte_level(merges=("a b",)), pre="gpt-2", token_type=None)
    assert tokenizer.encode("ab").tokens == ["ab"]
