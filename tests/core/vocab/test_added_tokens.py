"""Special and added tokens from all files of a directory, compared with transformers' AutoTokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.tiny import write_tokenizer
from vt_core.errors import TokenizerError
from vt_core.vocab.added_tokens import STANDARD_NAMES
from vt_core.vocab.token_bytes import Kind, TokenTable, tokenizer_digest
from vt_core.vocab.tokenizer import Tokenizer, load_tokenizer

WORDS = ["<a>", "<b>", "<|im_end|>", "<|d|>", "ab", "hello", "[E]", " f ", "<g>", "Xy"]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_random_directory(path: Path, rng: random.Random) -> None:
    """Tokenizer files that name the same few tokens in random places with random flags."""

    def chance(share: float) -> bool:
        return rng.random() < share

    def token(word: str) -> dict:
        return {"content": word} | {flag: chance(0.3) for flag in FLAGS}

    def some(most: int) -> list[str]:
        return rng.sample(WORDS, rng.randint(0, most))

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: id for id, character in enumerate(alphabet)}
    merges = [("a", "b"), ("h", "e"), ("l", "l")]
    for word in ["".join(merge) for merge in merges] + some(4):
        vocabulary.setdefault(word, len(vocabulary))
    fast = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    if chance(0.3):
        fast.normalizer = normalizers.Lowercase()
    fast.add_tokens([tokenizers.AddedToken(**token(word)) for word in some(4)])
    if chance(0.2):
        fast.enable_padding(pad_token=rng.choice(WORDS))
    fast.save(str(path / "tokenizer.json"))

    config: dict = {"tokenizer_class": rng.choice(["PreTrainedTokenizerFast", "TokenizersBackend"])}
    for name in (*STANDARD_NAMES, "boi_token"):
        if chance(0.25):
            word = rng.choice(WORDS)
            plain = chance(0.7) or name == "boi_token"
            config[name] = word if plain else {"__type": "AddedToken"} | token(word)
    if chance(0.4):
        config["extra_special_tokens"] = rng.choice([some(3), {"image_token": rng.choice(WORDS)}, {}, None])
    if chance(0.3):
        config["additional_special_tokens"] = rng.choice([some(3), None])
    if chance(0.1):
        config["split_special_tokens"] = True
    if chance(0.5):
        config["added_tokens_decoder"] = {
            str(rng.choice([id, rng.randrange(400)])): token(word) for id, word in enumerate(some(4), 260)
        }
    write_json(path / "tokenizer_config.json", config)
    if chance(0.5):
        names = {name: rng.choice([str, token])(rng.choice(WORDS)) for name in STANDARD_NAMES if chance(0.2)}
        if chance(0.3):
            names["additional_special_tokens"] = some(2)
        if chance(0.2):
            names["extra_special_tokens"] = [rng.choice([str, token])(word) for word in some(2)]
        write_json(path / "special_tokens_map.json", names)
    if chance(0.5):
        write_json(path / "added_tokens.json", {word: rng.randrange(255, 400) for word in some(3)})


@pytest.mark.parametrize("seed", range(60))
def test_ids_and_names_are_those_of_auto_tokenizer(tmp_path, seed):
    from transformers import AutoTokenizer

    rng = random.Random(seed)
    write_random_directory(tmp_path, rng)
    try:
        theirs = AutoTokenizer.from_pretrained(tmp_path)
    except (AttributeError, TypeError):
        pytest.skip("transformers refuses this directory")
    ours = Tokenizer(tmp_path)
    fast = load_tokenizer(tmp_path / "tokenizer.json")
    texts = ["".join(rng.choices([*WORDS, " ", "x", "é"], k=8)) for _ in range(12)]
    for text in texts:
        expected = theirs.encode(text)
        assert ours.encode(text).tolist() == fast.encode(text).ids == expected
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    names = [*theirs.SPECIAL_TOKENS_ATTRIBUTES, "boi_token", "image_token"]
    assert {name: ours.named_id(name) for name in names} == {
        name: getattr(theirs, f"{name}_id", None) for name in names
    }
    added = theirs.added_tokens_decoder
    table = TokenTable.load(tmp_path / "tokenizer.json")
    assert ours.added_ids() == set(table.special_ids(1 << 20).tolist()) == set(added)
    for id, token in added.items():
        assert table.tokens[id] == token.content
        assert table.kinds[id] == (Kind.SPECIAL if token.special else Kind.ADDED)


def spread(path: Path, place: str, token: str, id: int) -> Path:
    """A tokenizer with a special token that only one file other than tokenizer.json names."""
    write_tokenizer(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    if place == "added_tokens.json":
        write_json(path / place, {token: id})
    elif place == "special_tokens_map.json":
        write_json(path / place, {"eos_token": {"content": token, "lstrip": False}})
    elif place == "added_tokens_decoder":
        config[place] = {str(id): {"content": token, "special": True}}
    else:
        config[place] = [token] if place.endswith("tokens") else token
    write_json(path / "tokenizer_config.json", config)
    return path


@pytest.mark.parametrize(
    "place",
    [
        "eos_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder",
        "added_tokens.json", "special_tokens_map.json",
    ],
)  # fmt: skip
def test_token_beside_tokenizer_json_is_one_id_everywhere(tmp_path, place):
    size = write_tokenizer(tmp_path)
    plain = tokenizer_digest(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(spread(tmp_path, place, "<|done|>", size))
    assert tokenizer.encode("ab<|done|>", special=False).tolist()[-1] == size
    assert tokenizer.size(size + 10) == size + 1
    assert size in tokenizer.added_ids()
    assert load_tokenizer(tmp_path / "tokenizer.json").token_to_id("<|done|>") == size
    assert TokenTable.load(tmp_path / "tokenizer.json").special_ids(size + 1)[-1] == size
    # The digest leaves control tokens out: the files of one tokenizer disagree about them.
    assert tokenizer_digest(tmp_path / "tokenizer.json") == plain


def test_digest_counts_text_tokens_of_other_files(tmp_path):
    from converters.tokenizer_json import digest

    size = write_tokenizer(tmp_path)
    plain = digest(tmp_path / "tokenizer.json")
    spread(tmp_path, "added_tokens.json", "forsooth", size)
    found = digest(tmp_path / "tokenizer.json")
    assert found == tokenizer_digest(tmp_path / "tokenizer.json") != plain


def test_other_file_name_is_read_alone(tmp_path):
    size = write_tokenizer(tmp_path)
    spread(tmp_path, "added_tokens.json", "forsooth", size)
    (tmp_path / "tokenizer.json").rename(tmp_path / "pruned.json")
    assert TokenTable.load(tmp_path / "pruned.json").size == size
    assert Tokenizer(tmp_path, tmp_path / "pruned.json").size(size + 10) == size


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("tokenizer_config.json", {"eos_token": 5}),
        ("tokenizer_config.json", {"eos_token": {"content": None}}),
        ("tokenizer_config.json", {"eos_token": "\ud800"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<e>", "special": "yes"}}),
        ("tokenizer_config.json", {"extra_special_tokens": "<e>"}),
        ("tokenizer_config.json", {"extra_special_tokens": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<e>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "<e>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": "<e>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"model_specific_special_tokens": [1]}),
        ("tokenizer_config.json", ["no object"]),
        ("added_tokens.json", {"<e>": "7"}),
        ("added_tokens.json", {"<e>": 2**40}),
        ("special_tokens_map.json", {"eos_token": {"content": 4}}),
        ("special_tokens_map.json", {"extra_special_tokens": [None]}),
    ],
)
def test_wrong_type_is_one_sentence(tmp_path, file, value):
    write_tokenizer(tmp_path)
    write_json(tmp_path / file, value)
    with pytest.raises(TokenizerError, match=file.replace(".", r"\.")) as caught:
        Tokenizer(tmp_path)
    assert len(str(caught.value)) < 500


def test_deep_json_is_one_sentence(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(TokenizerError, match="nested more than"):
        Tokenizer(tmp_path)
