"""Text to ids and back: the full tokenizer, its chat templates, and the ids that end a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from vt_core.errors import ConfigError, PromptError, TokenizerError, shorten
from vt_core.files.json_files import read_bytes, read_object
from vt_core.files.model_config import text_config
from vt_core.types import Ids
from vt_core.vocab import chat_template
from vt_core.vocab.added_tokens import AddedToken, TokenizerFiles
from vt_core.vocab.chat_template import ChatTemplates, Message
from vt_core.vocab.merges import Merges
from vt_core.vocab.mistral_regex import fix_mistral_regex
from vt_core.vocab.token_bytes import byte_level_bytes, is_unused, sentencepiece_bytes

#: What a request takes: text, chat messages, or full ids.
Prompt = str | Sequence[Message] | Sequence[int]

#: Tokens that end a turn in chat templates. Base models' configurations often leave theirs out.
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>",
)  # fmt: skip

#: Times that a normalizer or decoder may lengthen a text, and steps that it may have.
MAX_GROWTH = 64
MAX_STEPS = 100
#: Tokens that a tokenizer may add to every text, such as BOS.
MAX_ADDED = 1000


class Tokenizer:
    """The tokenizer of a model directory."""

    def __init__(self, directory: Path, tokenizer_json: Path | None = None) -> None:
        """Read the tokenizer.

        Args:
            directory: the model directory.
            tokenizer_json: a file with another vocabulary for the directory's; it lists all added tokens.

        Raises:
            TokenizerError: a tokenizer file or chat template cannot be read.
            ConfigError: config.json or generation_config.json cannot be read, or its EOS is not an id.
        """
        self.path = directory / "tokenizer.json" if tokenizer_json is None else tokenizer_json
        files = TokenizerFiles.read(directory)
        self._fast, pad = _load(self.path, files if tokenizer_json is None else None)
        self._named = files.named(pad)
        self._added = frozenset(self._fast.get_added_tokens_decoder())
        self._is_byte_level = b"ByteLevel" in (
            b"" if self._fast.decoder is None else self._fast.decoder.__getstate__()
        )
        self._configured_eos = _configured_eos(directory)
        self.merges = Merges.beside(self.path)  #: merged tokens of an enriched model
        self.templates = ChatTemplates.read(directory, files.config)  #: chat templates by name

    @property
    def chat_template(self) -> str | None:
        """The template of a conversation without tools, if there is one."""
        return self.templates.default

    def encode(self, text: str, *, special: bool = True) -> Ids:
        """Full ids of raw text, int64 ``[n]``.

        Args:
            special: also the tokens that the tokenizer adds to a text, such as BOS.

        Raises:
            PromptError: `text` is not text, or cannot be written as UTF-8.
            TokenizerError: the tokenizer fails on this text.
        """
        _check_text(text)
        with library_errors(f"{self.path} fails to encode this text"):
            ids = self._fast.encode(text, add_special_tokens=special).ids
        return np.array(ids, dtype=np.int64)

    def encode_output(self, text: str) -> list[int]:
        """Full ids of a text as the model writes it: with merged tokens, without special ones.

        Raises:
            PromptError: `text` is not text, or cannot be written as UTF-8.
            TokenizerError: the tokenizer fails on this text.
        """
        return self.merges.apply(self.encode(text, special=False).tolist())

    def encode_chat(self, messages: Sequence[Message], **template_arguments: Any) -> Ids:
        """Full ids of a conversation through the chat template, ready for the answer; int64 ``[n]``.

        Args:
            template_arguments: those of `render_chat`.

        Raises:
            PromptError: the model has no template, or the template refuses these messages.
        """
        # The template writes BOS itself where the model wants one, so the tokenizer must not add a second.
        return self.encode(self.render_chat(messages, **template_arguments), special=False)

    def render_chat(self, messages: Sequence[Message], **template_arguments: Any) -> str:
        """The text that the chat template makes of a conversation.

        Args:
            template_arguments: arguments of `vt_core.vocab.chat_template.render`, variables of the template,
                and `chat_template`: name of the template to use, or a template.

        Raises:
            PromptError: the model has no template, or the template refuses these messages.
        """
        name = template_arguments.pop("chat_template", None)
        template = self.templates.choose(name, tools=template_arguments.get("tools") is not None)
        try:
            return chat_template.render(template, messages, **self._named | template_arguments)
        except PromptError:
            raise
        except Exception as error:  # a template raises whatever its author wrote
            raise PromptError(f"the chat template refuses these messages ({error})") from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of full ids, special tokens left out."""
        with library_errors(f"{self.path} fails to decode these ids"):
            return self._fast.decode(list(ids), skip_special_tokens=True)

    def stream(self, shown: Mapping[int, str] | None = None) -> TextStream:
        """A decoder that takes ids one at a time; ``shown``: special tokens to write, and how."""
        return TextStream(self, shown or {})

    def size(self, rows: int) -> int:
        """How many of a table's ``rows`` have a token; those after the last token are padding."""
        ids = range(rows - 1, -1, -1)
        return 1 + next((token_id for token_id in ids if self._fast.id_to_token(token_id) is not None), -1)

    def id_of(self, token: str) -> int | None:
        """Id of a token as the tokenizer's file spells it."""
        return self._fast.token_to_id(token)

    def token_of(self, token_id: int) -> str:
        """The token of an id as the tokenizer's file spells it; empty if the id has none."""
        return self._fast.id_to_token(token_id) or ""

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of the text that an id stands for, also where it is a part of a character; empty if the id
        has no token. Special tokens are spelled as they are.
        """
        token = self.token_of(token_id)
        if token_id in self._added:
            return token.encode()
        return byte_level_bytes(token) if self._is_byte_level else sentencepiece_bytes(token)

    def named_id(self, name: str) -> int | None:
        """Id of the special token of that name (`bos_token`, `eos_token`), if there is one."""
        return self.id_of(self._named[name]) if name in self._named else None

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of those texts that are special tokens, which decoded text does not show."""
        ids = {token_id for text in texts if (token_id := self.id_of(text)) is not None}
        return frozenset(token_id for token_id in ids if not self.decode([token_id]))

    def added_ids(self) -> frozenset[int]:
        """Ids of special and added tokens except reserved ones, as `TokenTable.special_ids` gives them."""
        added = self._fast.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if not is_unused(token.content))

    def eos_ids(self, rows: int) -> frozenset[int]:
        """Ids below ``rows`` that end a text: those that configurations name, and the ends of a chat turn."""
        # In gpt-oss <|end|> only ends a message; <|return|> ends the answer.
        ends = [end for end in TURN_ENDS if end != "<|end|>" or self.id_of("<|return|>") is None]
        ids = {self.named_id("eos_token"), *map(self.id_of, ends), *self._configured_eos}
        return frozenset(token_id for token_id in ids if token_id is not None and 0 <= token_id < rows)


class TextStream:
    """Text of one request as its ids arrive.

    Each id decodes a short window again, because a token's text depends on its neighbors: a leading space, or
    a character whose bytes are split over several tokens. Such a character comes with its last token.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str]) -> None:
        self._tokenizer, self._markers = tokenizer, shown
        self._ids: list[int] = []
        self._start = 0  # first id of the window
        self._shown = 0  # ids before this one have been returned as text

    def push(self, token_id: int) -> str:
        """The text that this id completes; may be empty."""
        self._ids.append(token_id)
        fresh, marker = self._fresh(), self._markers.get(token_id, "")
        if not marker and (not fresh or fresh.endswith("\ufffd")):
            return ""
        if fresh:  # else the window keeps what the next token's text depends on
            self._start = self._shown
        self._shown = len(self._ids)
        return fresh + marker

    def finish(self) -> str:
        """The rest of the text. Bytes at the end that are not a whole character become U+FFFD."""
        return self._fresh()

    def _fresh(self) -> str:
        shown = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(shown) :]


def load_tokenizer(tokenizer_json: str | Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a `tokenizer.json`, with the tokens that the files beside it add.

    Padding and truncation are off: training scripts leave them in the file, and they would change prompts.

    Raises:
        TokenizerError: a file cannot be read.
    """
    path = Path(tokenizer_json)
    return _load(path, TokenizerFiles.beside(path))[0]


def _load(path: Path, files: TokenizerFiles | None) -> tuple[tokenizers.Tokenizer, str | None]:
    """A tokenizer with the tokens that `files` add, and the token that it pads with."""
    content = read_bytes(path, "tokenizer", TokenizerError)
    with library_errors(f"{path} cannot be read as a tokenizer"):
        fast = tokenizers.Tokenizer.from_buffer(content)
        _check_limits(fast, path)
        pad = fast.padding["pad_token"] if fast.padding else None
        fast.no_truncation()
        fast.no_padding()
        if files is None:
            return fast, pad
        own = {
            token_id: AddedToken(
                token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special
            )
            for token_id, token in fast.get_added_tokens_decoder().items()
        }
        fast.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in files.additions(own, pad)])
        fix_mistral_regex(fast, files)
        fast.encode_special_tokens = files.config.get("split_special_tokens") is True
    return fast, pad


def _check_limits(fast: tokenizers.Tokenizer, path: Path) -> None:
    """Refuse a tokenizer that makes a short text very long.

    Raises:
        TokenizerError: the normalizer, decoder or post-processor does.
    """
    for name, component in (("normalizer", fast.normalizer), ("decoder", fast.decoder)):
        if component is None:
            continue
        replacements = list(_steps(json.loads(component.__getstate__())))
        growth = 1.0
        for step in replacements:
            growth *= _growth(step)
        if len(replacements) > MAX_STEPS or growth > MAX_GROWTH:
            raise TokenizerError(f"{path}: the {name} lengthens texts more than {MAX_GROWTH} times.")
    if fast.num_special_tokens_to_add(False) > MAX_ADDED:
        raise TokenizerError(f"{path}: the post-processor adds more than {MAX_ADDED} tokens to every text.")


def _steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """The single steps of a normalizer or decoder."""
    parts = component.get("normalizers") or component.get("decoders")
    if parts is None:
        yield component
        return
    for part in parts:
        yield from _steps(part)


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer a step can make a text."""
    if step.get("type") != "Replace":
        return 1.0
    pattern = step["pattern"].get("String")
    # A regular expression may match one character, or nothing between any two.
    return max(1.0, len(step["content"]) / len(pattern) if pattern else 1.0 + len(step["content"]))


@contextmanager
def library_errors(sentence: str) -> Iterator[None]:
    """Turn the tokenizers library's errors into TokenizerError; `sentence` says what failed."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        # The library raises plain Exception for every fault. A panic of its Rust code, such as a regular
        # expression that takes too long, is not even an Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{sentence} ({error}).") from error
        raise


def _configured_eos(directory: Path) -> frozenset[int]:
    """Ids that config.json and generation_config.json name as EOS.

    Those of a nested text model count if no other file names one, as in transformers.

    Raises:
        ConfigError: a file cannot be read, or names something else than ids.
    """
    config = _read_optional(directory / "config.json")
    named = _eos(_read_optional(directory / "generation_config.json"), directory / "generation_config.json")
    named |= _eos(config, directory / "config.json")
    return frozenset(named or _eos(text_config(config), directory / "config.json"))


def _eos(config: Mapping[str, Any], path: Path) -> set[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise ConfigError(
                f"{path}: eos_token_id holds {shorten(token_id)}, which is not a token id; give a whole "
                "number or a list of them."
            )
    return set(ids)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_object(path, "configuration", ConfigError, strict=False) if path.is_file() else {}


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise PromptError(f"the text to encode is {shorten(text)}, which is not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # Python passes bytes of another encoding on as half a surrogate pair
        raise PromptError(
            f"the prompt is not UTF-8 text (at character {error.start}); re-encode it"
        ) from error
