"""The flag `fix_mistral_regex` of tokenizer_config.json, compared with AutoTokenizer on the same files."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vt_core.vocab.tokenizer import Tokenizer as VtTokenizer
from vt_core.vocab.tokenizer import load_tokenizer

TEXTS = ["HelloWorld's 1234 fooBar/\n\n x", "Ünï ÇA va", "a\tb  c", ""]
#: Enough tokens for the correction; the words at the end occur in the texts, cut in one way or the other.
FILLERS = [f"<{number}>" for number in range(100_001)]
WORDS = ["HelloWorld", "Hello", "World", "foo", "Bar", "fooBar", "12", "34", "1234"]


@pytest.fixture(scope="module")
def vocabulary():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id for id, token in enumerate(alphabet + FILLERS)}
    merges = []
    for word in WORDS:
        for cut in range(1, len(word)):
            if (pair := (word[:cut], word[cut])) not in merges:
                merges.append(pair)
                vocab.setdefault(word[: cut + 1], len(vocab))
    return vocab, merges


def write(directory, vocabulary, pre_tokenizer, flag=True, config=None, tokens=None):
    vocab, merges = vocabulary
    if tokens is not None:
        vocab = {token: id for token, id in vocab.items() if not token.startswith("<")}
        vocab = {token: id for id, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if flag is not None:
        settings["fix_mistral_regex"] = flag
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "sequence": pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"), BYTES]),
    "single": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "metaspace": pre_tokenizers.Metaspace(),
}
OLD = {"model_type": "mistral3", "transformers_version": "4.57.1"}


def ids(directory):
    auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)
    return [auto(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_ids_are_those_of_auto_tokenizer(tmp_path, vocabulary, kind):
    write(tmp_path, vocabulary, PRE_TOKENIZERS[kind], config=OLD)
    tokenizer, plain = VtTokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = [tokenizer.encode(text, special=False).tolist() for text in TEXTS]
    assert found == ids(tmp_path)
    assert found != [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]
    other = load_tokenizer(tmp_path / "tokenizer.json")
    assert [other.encode(text, add_special_tokens=False).ids for text in TEXTS] == found


@pytest.mark.parametrize(
    "changes",
    [
        {"flag": None},
        {"flag": False},
        {"config": None},
        {"config": OLD | {"model_type": "llama"}},
        {"config": OLD | {"transformers_version": "5.0.0"}},
        {"config": {"model_type": "mistral"}},
        {"config": {}},
        {"tokens": "few"},
    ],
    ids=str,
)
def test_conditions_are_those_of_auto_tokenizer(tmp_path, vocabulary, changes):
    write(tmp_path, vocabulary, PRE_TOKENIZERS["sequence"], **{"config": OLD, **changes})
    tokenizer = VtTokenizer(tmp_path)
    assert [tokenizer.encode(text, special=False).tolist() for text in TEXTS] == ids(tmp_path)
