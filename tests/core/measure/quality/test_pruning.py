"""A pruned tokenizer encodes its corpus as the full one does, and can still encode any other text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.core.profile.small_tokenizers import added, byte_level, sentencepiece, write
from vt_core.errors import TokenizerError
from vt_core.measure.quality.pruning import Pruning

WORDS = ["hello", "help", " world", "world", "日本", "held"]
END, PAD = 276, 277  # after the tokens of WORDS


def with_specials(words):
    data = byte_level(words, [added(END, "<|end|>"), added(PAD, "<|pad|>")])
    assert len(data["model"]["vocab"]) == END, "the library numbers added tokens from here"
    return data


def prune(tmp_path, data, texts, rows=1000):
    path = write(tmp_path, data)
    whole = Tokenizer.from_file(str(path))
    corpus = {id for text in texts for id in whole.encode(text).ids}
    pruning = Pruning(path, rows, corpus)
    return whole, pruning, Tokenizer.from_str(pruning.tokenizer_json().decode())


def test_byte_level_corpus_keeps_its_tokens_and_ids(tmp_path):
    whole, pruning, pruned = prune(tmp_path, with_specials(WORDS), ["hello world<|end|>"])
    assert pruned.encode("hello world<|end|>").tokens == ["hello", "Ġworld", "<|end|>"]
    assert pruned.encode("hello world<|end|>").ids == whole.encode("hello world<|end|>").ids
    # "hello" is merged from "he", "hel" and "hell"; "help" is not needed, and is spelled with what is left.
    assert pruned.encode("help").tokens == ["hel", "p"]
    assert [whole.id_to_token(id) for id in pruning.ids if 256 <= id < END] == [
        "he", "hel", "hell", "hello", "Ġw", "Ġwo", "Ġwor", "Ġworl", "Ġworld",
    ]  # fmt: skip
    assert pruned.encode("日").tokens == ["æ", "Ĺ", "¥"]
    assert {*range(256), END, PAD} <= set(pruning.ids.tolist())


def test_sentencepiece_falls_back_to_bytes(tmp_path):
    data = sentencepiece(["hello", " world", "日本"], characters="xyz")
    whole, pruning, pruned = prune(tmp_path, data, ["hello world"])
    assert pruned.encode("hello world").tokens == whole.encode("hello world").tokens == ["hello", "▁world"]
    assert whole.encode("日本").tokens == ["日本"]
    assert pruned.encode("日").tokens == ["<0xE6>", "<0x97>", "<0xA5>"]
    assert pruned.decode(pruned.encode("hello 日x").ids) == "hello 日x"
    assert set(pruned.encode("hello 日x").ids) <= set(pruning.ids.tolist())


@settings(max_examples=40, deadline=None)
@given(
    corpus=st.lists(st.text("helowrdp 日本ab", max_size=12), min_size=1, max_size=5),
    other=st.text("helowrdp 日本ab\U0001f600", max_size=12),
)
def test_any_corpus_is_encoded_as_before_and_any_text_can_be_encoded(tmp_path_factory, corpus, other):
    directory = tmp_path_factory.mktemp("pruned")
    whole, pruning, pruned = prune(directory, byte_level([*WORDS, "lowered", "wordless"]), corpus)
    for text in corpus:
        assert pruned.encode(text).ids == whole.encode(text).ids
    ids = pruned.encode(other).ids
    assert set(ids) <= set(pruning.ids.tolist())
    assert whole.decode(ids) == other


def test_added_tokens_keep_their_ids(tmp_path):
    _, _, pruned = prune(tmp_path, with_specials(WORDS), ["hello"])
    assert pruned.encode("<|pad|>hello<|end|>").ids == [PAD, *pruned.encode("hello").ids, END]
    small = Pruning(tmp_path / "tokenizer.json", PAD, [])
    assert END in small.ids and PAD not in small.ids, "an id without a row is not kept"
    assert "<|pad|>" not in small.tokenizer_json().decode()


def test_merges_as_strings_are_read(tmp_path):
    data = byte_level(["hello"])
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    _, _, pruned = prune(tmp_path, data, ["hello"])
    assert pruned.encode("hello").tokens == ["hello"]


def test_unigram_tokenizers_are_refused(tmp_path):
    data = sentencepiece(["a"])
    data["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    with pytest.raises(TokenizerError, match="needs a BPE tokenizer with merges, this one is 'Unigram'"):
        Pruning(write(tmp_path, data), 2, [1])


def test_pruned_file_differs_only_in_vocabulary_and_merges(tmp_path):
    data = with_specials(WORDS)
    _, pruning, _ = prune(tmp_path, data, ["held"])
    cut = json.loads(pruning.tokenizer_json())
    assert cut["pre_tokenizer"] == data["pre_tokenizer"] and cut["decoder"] == data["decoder"]
    assert cut["model"]["merges"] == [["h", "e"], ["he", "l"], ["hel", "d"]]
    assert len(cut["model"]["vocab"]) == 256 + 3 + 2
