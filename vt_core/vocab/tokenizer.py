"""Text to ids and back: the full tokenizer, its chat template, and the ids that end a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from vt_core.errors import ConfigError, PromptError, TokenizerError
from vt_core.files.json_files import read_object
from vt_core.vocab.active import Ids
from vt_core.vocab.token_bytes import is_unused

Message = Mapping[str, Any]  #: a chat message: ``{"role": "user", "content": "…"}``
Prompt = str | Sequence[Message] | Sequence[int]

#: Tokens that end a turn in chat templates. Base models' configurations often leave theirs out.
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>",
)  # fmt: skip


class Tokenizer:
    """The tokenizer of a model directory."""

    def __init__(self, directory: Path, tokenizer_json: Path | None = None) -> None:
        """With `tokenizer_json` in place of the directory's own. Raises TokenizerError when the files cannot
        be read.
        """
        self.path = directory / "tokenizer.json" if tokenizer_json is None else tokenizer_json
        try:
            self._fast = FastTokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises plain Exception for every fault
            raise TokenizerError(
                f"{self.path} cannot be read as a tokenizer ({error}); convert the model again"
            ) from error
        # A length limit or padding left in the file by a training script would change prompts.
        self._fast.no_truncation()
        self._fast.no_padding()
        self._config = read_json(directory / "tokenizer_config.json", {})
        self._generation_config = read_json(directory / "generation_config.json", {})
        self._model_config = read_json(directory / "config.json", {})
        templates = self._read_templates(directory)
        self.chat_template = templates.get("default")
        self._tool_template = templates.get("tool_use")

    def encode(self, text: str, *, special: bool = True) -> Ids:
        """Full ids of raw text, int64 ``[n]``; ``special``: with the tokens (BOS) that the tokenizer adds."""
        return np.array(self._fast.encode(_encodable(text), add_special_tokens=special).ids, dtype=np.int64)

    def encode_chat(self, messages: Sequence[Message], **template_arguments: Any) -> Ids:
        """Full ids of a conversation through the chat template, ready for the answer; int64 ``[n]``.

        Raises:
            PromptError: the model has no template, or the template refuses these messages.
        """
        # The template writes BOS itself where the model wants one, so the tokenizer must not add a second.
        return self.encode(self.render_chat(messages, **template_arguments), special=False)

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **template_arguments: Any
    ) -> str:
        """The text that the chat template makes of a conversation; raises as :meth:`encode_chat`."""
        if self.chat_template is None:
            raise PromptError(
                f"{self.path.parent} has no chat template; give the prompt as text, or use --raw"
            )
        from transformers.utils.chat_template_utils import render_jinja_template

        # Also those of single models, such as boi_token; some templates name them.
        names = [name for name in self._config if name.endswith("_token")]
        specials: dict[str, Any] = {name: _content(self._config[name]) for name in names}
        template = self.chat_template
        if template_arguments.get("tools") and self._tool_template is not None:
            template = self._tool_template
        try:
            rendered = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **{name: token for name, token in specials.items() if isinstance(token, str)}
                | template_arguments,
            )
        except Exception as error:  # a template raises whatever its author wrote
            raise PromptError(
                f"the chat template of {self.path.parent} refuses these messages ({error})"
            ) from error
        text: str = rendered[0][0]
        return text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of full ids, special tokens left out."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """A decoder that takes ids one at a time."""
        return TextStream(self)

    def size(self, rows: int) -> int:
        """How many of a table's ``rows`` have a token: those behind the last id are padding."""
        ids = range(rows - 1, -1, -1)
        return 1 + next((token_id for token_id in ids if self._fast.id_to_token(token_id) is not None), -1)

    def id_of(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    def token_of(self, token_id: int) -> str:
        """The token of an id as the tokenizer's file has it; empty where it has none."""
        return self._fast.id_to_token(token_id) or ""

    def named_id(self, name: str) -> int | None:
        """Id of what tokenizer_config.json calls ``bos_token``, ``eos_token`` …, if there is one."""
        token = _content(self._config.get(name))
        return None if token is None else self.id_of(token)

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of those texts that are special tokens, which decoded text does not show."""
        ids = {token_id for text in texts if (token_id := self.id_of(text)) is not None}
        return frozenset(token_id for token_id in ids if not self.decode([token_id]))

    def added_ids(self) -> frozenset[int]:
        """Ids of special and added tokens, without reserved ones: as
        :meth:`vt_core.vocab.token_bytes.TokenTable.special_ids` gives them.
        """
        added = self._fast.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if not is_unused(token.content))

    def eos_ids(self, rows: int) -> frozenset[int]:
        """Ids below ``rows`` that end a text: those of the configurations, the tokenizer's, and the ends of a
        chat turn.
        """
        ids: set[int] = set()
        for config in (self._generation_config, self._model_config):
            named = config.get("eos_token_id")
            ids.update(named if isinstance(named, list) else [] if named is None else [named])
        # In gpt-oss <|end|> only ends a message, and <|return|> the answer.
        ends = [end for end in TURN_ENDS if end != "<|end|>" or self.id_of("<|return|>") is None]
        for token in (_content(self._config.get("eos_token")), *ends):
            token_id = None if token is None else self.id_of(token)
            if token_id is not None:
                ids.add(token_id)
        return frozenset(token_id for token_id in ids if 0 <= token_id < rows)

    def _read_templates(self, directory: Path) -> dict[str, str]:
        """By name: ``default``, and where a model has another one for prompts with tools, ``tool_use``."""
        file = directory / "chat_template.jinja"
        if file.is_file():
            return {"default": file.read_text(encoding="utf-8")}
        template = self._config.get("chat_template")
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}
        return {} if template is None else {"default": template}


class TextStream:
    """Text of one request as its ids arrive. A character whose bytes are split over tokens comes with the
    last.

    Decodes a short window anew with each id: what a token's text is depends on its neighbors (a leading
    space, bytes that only together form a character).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # where the window begins
        self._shown = 0  # up to where its text has been given out

    def push(self, token_id: int) -> str:
        """The text that this id completes; may be empty."""
        self._ids.append(token_id)
        fresh = self._fresh()
        if not fresh or fresh.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return fresh

    def finish(self) -> str:
        """Text still held back: bytes at the end that form no whole character come out as U+FFFD."""
        return self._fresh()

    def _fresh(self) -> str:
        shown = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(shown) :]


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON object in a file, or ``default`` where there is none.

    Raises:
        ConfigError: the file holds something else.
    """
    if default is not None and not path.is_file():
        return default
    return read_object(path, "configuration", ConfigError, strict=False)


def _encodable(text: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        PromptError: it holds bytes of another encoding, which Python passes on as half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt is no UTF-8 text (at character {error.start}); re-encode it"
        ) from error
    return text


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
