"""Special and added tokens of a tokenizer, from every file in which transformers looks for them.

`tokenizer.json` should list all of them in `added_tokens`, but many published models name some only in
`tokenizer_config.json` (`eos_token`, `added_tokens_decoder`, `extra_special_tokens`, ...),
`special_tokens_map.json` or `added_tokens.json`. transformers adds these to the tokenizer when it loads the
directory. `TokenizerFiles.additions` gives the same tokens in the same order, so that it encodes texts alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vt_core.errors import TokenizerError, shorten
from vt_core.files.json_files import read_object

#: Names of special tokens that every tokenizer may have. Others, such as `image_token`, belong to one model.
STANDARD_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip

#: Largest token id that files may hold; the largest vocabularies in use have about 2**18 ids.
MAX_TOKENS = 1 << 22


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text before anything else. Fields as in `tokenizers.AddedToken`."""

    content: str
    #: Matches whole words only.
    single_word: bool = False
    #: Also takes the white space before it, or after it.
    lstrip: bool = False
    rstrip: bool = False
    #: Is looked for in the normalized text.
    normalized: bool = True
    #: Is left out of decoded text.
    special: bool = False

    @classmethod
    def parse(cls, value: Any, where: str, *, special: bool | None = None) -> AddedToken:
        """A token from its JSON form, an object or a string.

        Args:
            where: the file and field, for messages.
            special: replaces the object's own `special`; a string is special unless this says otherwise.

        Raises:
            TokenizerError: it is neither, or a field has the wrong type.
        """
        if isinstance(value, AddedToken):
            return value
        if isinstance(value, str):
            special = True if special is None else special
            return cls(checked_text(value, where), normalized=not special, special=special)
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise TokenizerError(
                f"{where}: {shorten(value)} is not a token; give its text, or an object with it."
            )
        flags = {name: value[name] for name in _FLAGS if name in value}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TokenizerError(f"{where}: '{name}' is {shorten(flag)}, not true or false.")
        if special is not None:
            flags["special"] = special
        flags.setdefault("normalized", not flags.get("special", False))
        return cls(checked_text(value["content"], where), **flags)

    def as_json(self, id: int) -> dict[str, Any]:
        """The entry of `added_tokens` in a `tokenizer.json`."""
        return {"id": id, **asdict(self)}


_FLAGS = tuple(field.name for field in fields(AddedToken) if field.name != "content")


@dataclass(frozen=True)
class TokenizerFiles:
    """The files beside a `tokenizer.json` that name tokens. Absent ones are empty."""

    #: The directory, for messages.
    where: Path = Path()
    #: Content of tokenizer_config.json.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: Content of special_tokens_map.json.
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)
    #: Content of added_tokens.json: ids by text.
    added_tokens: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        """Read the files of a directory.

        Raises:
            TokenizerError: a file is not a JSON object.
        """
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        return cls(directory, *(_read_optional(directory / name) for name in names))

    @classmethod
    def beside(cls, tokenizer_json: Path) -> TokenizerFiles:
        """The files in the directory of a `tokenizer.json`. A file of another name stands alone.

        Raises:
            TokenizerError: a file is not a JSON object.
        """
        return cls.read(tokenizer_json.parent) if tokenizer_json.name == "tokenizer.json" else cls()

    def named(self, pad: str | None = None) -> dict[str, str]:
        """Texts of the special tokens by name (`bos_token`), with those of this one model (`image_token`).

        Args:
            pad: the padding token that `tokenizer.json` sets, used where no file names one.

        Raises:
            TokenizerError: a token has a wrong type.
        """
        return {name: _content(token) for name, token in _Resolved.of(self, {}, pad).named.items()}

    def additions(self, own: Mapping[int, AddedToken], pad: str | None = None) -> list[AddedToken]:
        """Tokens, in order, that transformers adds to those of `tokenizer.json` or adds with other flags.

        Args:
            own: the added tokens of `tokenizer.json` by id.
            pad: see `named`.

        Raises:
            TokenizerError: a token or an id has a wrong type.
        """
        resolved = _Resolved.of(self, own, pad)
        found: list[AddedToken | str] = [token for _, token in sorted(resolved.decoder.items())]
        known = {_content(token) for token in (*own.values(), *found)}
        for token in (*resolved.named.values(), *resolved.extra):
            # A text and an object are different tokens here, as in transformers: the later one counts.
            if _content(token) not in known and token not in found:
                found.append(token)
        named = {_content(token) for token in resolved.named.values()}
        tokens = [AddedToken.parse(token, str(self.where)) for token in found]
        tokens = [replace(token, special=token.special or token.content in named) for token in tokens]
        # Without those that change nothing: the library compares each token with all that it has.
        unchanged = set(own.values())
        counts = Counter(token.content for token in tokens)
        return [token for token in tokens if token not in unchanged or counts[token.content] > 1]


@dataclass(frozen=True)
class _Resolved:
    """What all files together say, by transformers' rules of precedence."""

    #: Tokens that are always added, by the id that orders them.
    decoder: dict[int, AddedToken]
    #: Special tokens by name: a text, or an object with flags.
    named: dict[str, AddedToken | str]
    #: Special tokens without a name.
    extra: list[AddedToken | str]

    @classmethod
    def of(cls, files: TokenizerFiles, own: Mapping[int, AddedToken], pad: str | None) -> _Resolved:
        config = f"{files.where / 'tokenizer_config.json'}"
        values = dict(files.config)
        if not values.get("extra_special_tokens"):
            _move(values, "additional_special_tokens", "extra_special_tokens")
        models_own = {
            name: values.pop(name)
            for name in list(values)
            if name.endswith("_token") and name not in STANDARD_NAMES and isinstance(values[name], str)
        }
        if isinstance(values.get("extra_special_tokens"), Mapping):
            models_own.update(values.pop("extra_special_tokens"))
        if not models_own:
            models_own = _mapping(values.get("model_specific_special_tokens"), config)
        if "added_tokens_decoder" in values:
            decoder = _decoder(values["added_tokens_decoder"], config)
        else:
            # Files written before added_tokens_decoder existed. special_tokens_map.json wins over the config.
            values.update(_special_tokens_map(files, values))
            if isinstance(values.get("extra_special_tokens"), Mapping):
                models_own.update(values.pop("extra_special_tokens"))
            decoder = _added_tokens(files, values) | dict(own)
        if "extra_special_tokens" not in values:
            _move(values, "additional_special_tokens", "extra_special_tokens")
        if pad is not None:
            values.setdefault("pad_token", pad)
        names = [
            *STANDARD_NAMES,
            *(name for name in values if name.endswith("_token") and name not in STANDARD_NAMES),
        ]
        found = {name: values[name] for name in names if _is_given(name, values.get(name))} | models_own
        by_content = {token.content: token for token in decoder.values()}
        named = {}
        for name, value in found.items():
            token = _token(value, f"{config}: {name}")
            named[name] = by_content.get(_content(token), token) if name in STANDARD_NAMES else token
        return cls(decoder, named, _extra(values, config))


def merge_added_tokens(data: dict[str, Any], files: TokenizerFiles, where: str) -> None:
    """Put the tokens that other files add into `added_tokens` of a parsed `tokenizer.json`, with their ids.

    A new token gets the id that the tokenizers library gives it: that of the same text in the model's
    vocabulary, else the next one after all tokens.

    Raises:
        TokenizerError: an entry has a wrong type.
    """
    entries = data.get("added_tokens") or []
    own = parse_added_tokens(entries, where)
    padding = data.get("padding")
    pad = padding.get("pad_token") if isinstance(padding, Mapping) else None
    additions = files.additions(own, pad if isinstance(pad, str) else None)
    if not additions:
        return
    vocab = data["model"].get("vocab") if isinstance(data.get("model"), Mapping) else None
    size = len(vocab) if isinstance(vocab, dict | list) else 0
    vocab_ids = vocab if isinstance(vocab, dict) else _piece_ids(vocab)
    ids = {token.content: id for id, token in own.items()}
    largest = max(own, default=-1)
    tokens = dict(own)
    for token in additions:
        if not token.content:
            continue
        id = ids.get(token.content, vocab_ids.get(token.content))
        if id is None:
            id = max(size, largest + 1)
        largest = max(largest, checked_id(id, where))
        ids[token.content] = id
        tokens[id] = token
    data["added_tokens"] = [token.as_json(id) for id, token in tokens.items()]


def parse_added_tokens(entries: Any, where: str) -> dict[int, AddedToken]:
    """The tokens of `added_tokens` in a `tokenizer.json`, by id.

    Raises:
        TokenizerError: an entry has a wrong type.
    """
    if not isinstance(entries, list):
        raise TokenizerError(f"{where}: added_tokens is {shorten(entries)}, not a list.")
    tokens = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{where}: an entry of added_tokens has no 'content'.")
        tokens[checked_id(entry.get("id"), where)] = AddedToken.parse(entry, f"{where}: added_tokens")
    return tokens


def checked_id(id: object, where: str) -> int:
    """`id`, if it is a token id.

    Raises:
        TokenizerError: it is not a whole number in range.
    """
    if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < MAX_TOKENS:
        raise TokenizerError(
            f"{where}: token id {shorten(id)} is not a whole number from 0 to {MAX_TOKENS - 1}."
        )
    return id


def checked_text(text: str, where: str) -> str:
    """`text`, if it can be written as UTF-8: JSON can hold half a surrogate pair.

    Raises:
        TokenizerError: it cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"{where}: {shorten(text)} is not valid Unicode text.") from error
    return text


def _decoder(entries: Any, where: str) -> dict[int, AddedToken]:
    """added_tokens_decoder of tokenizer_config.json: tokens by id, ids as text."""
    tokens = {}
    for key, value in _mapping(entries, f"{where}: added_tokens_decoder").items():
        try:
            id: object = int(key)
        except ValueError:
            id = key
        if not isinstance(value, Mapping):
            raise TokenizerError(f"{where}: added_tokens_decoder holds {shorten(value)}, not a token.")
        tokens[checked_id(id, where)] = AddedToken.parse(value, f"{where}: added_tokens_decoder")
    return tokens


def _special_tokens_map(files: TokenizerFiles, values: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{files.where / 'special_tokens_map.json'}"
    found: dict[str, Any] = {}
    for name, value in files.special_tokens_map.items():
        if name == "extra_special_tokens" and isinstance(value, list):
            tokens = [_token(token, f"{where}: {name}", special=True) for token in value]
            found[name] = list(dict.fromkeys([*_extra(values, where), *tokens]))
        elif isinstance(value, Mapping) and name != "extra_special_tokens":
            found[name] = _token(value, f"{where}: {name}", special=True)
        else:
            found[name] = value
    return found


def _added_tokens(files: TokenizerFiles, values: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Tokens of added_tokens.json by id; special are those that another file names."""
    where = f"{files.where / 'added_tokens.json'}"
    # transformers does not count names that tokenizer_config.json gives as objects.
    named = (value for name in STANDARD_NAMES if isinstance(value := values.get(name), str | AddedToken))
    config = f"{files.where / 'tokenizer_config.json'}"
    special = {_content(token) for token in (*named, *_extra(values, config))}
    return {
        checked_id(id, where): AddedToken.parse(text, where, special=text in special)
        for text, id in files.added_tokens.items()
    }


def _extra(values: Mapping[str, Any], where: str) -> list[AddedToken | str]:
    """The special tokens without a name."""
    tokens = values.get("extra_special_tokens") or []
    if not isinstance(tokens, list):
        raise TokenizerError(f"{where}: extra_special_tokens is {shorten(tokens)}, not a list of tokens.")
    return [_token(value, f"{where}: extra_special_tokens") for value in tokens]


def _token(value: Any, where: str, special: bool | None = None) -> AddedToken | str:
    """A text as it is, an object as an `AddedToken`."""
    return (
        checked_text(value, where)
        if isinstance(value, str)
        else AddedToken.parse(value, where, special=special)
    )


def _content(token: AddedToken | str) -> str:
    return token if isinstance(token, str) else token.content


def _is_given(name: str, value: Any) -> bool:
    """Whether a field holds a token. Other fields than the standard ones may end in `_token` by chance."""
    if name in STANDARD_NAMES:
        return value is not None
    return isinstance(value, str | AddedToken) or (isinstance(value, Mapping) and "content" in value)


def _move(values: dict[str, Any], old: str, new: str) -> None:
    if old in values:
        values[new] = values.pop(old)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TokenizerError(f"{where}: {shorten(value)} is not an object.")
    return dict(value)


def _piece_ids(vocab: Any) -> dict[str, int]:
    """Ids of a Unigram vocabulary, a list of pieces with scores."""
    pieces = vocab if isinstance(vocab, list) else []
    return {piece[0]: id for id, piece in enumerate(pieces) if isinstance(piece, list) and piece}


def _read_optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_object(path, "tokenizer configuration", TokenizerError, strict=False)
