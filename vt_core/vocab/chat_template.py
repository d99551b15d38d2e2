"""Chat templates: which one a conversation takes, and its rendering as in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import PromptError, TokenizerError, shorten
from vt_core.files.json_files import read_text
from vt_core.vocab import template_sandbox

Message = Mapping[str, Any]  #: a chat message: ``{"role": "user", "content": "..."}``

DEFAULT = "default"
TOOL_USE = "tool_use"

#: Longest template in bytes; the longest in use have about 30,000.
MAX_TEMPLATE_BYTES = 1 << 18
#: Fields in which messages carry a model's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: Marks the end of a message that the model is to continue.
_END_MARK = "<<end of the message to continue>> "


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a model."""

    #: By name.
    by_name: Mapping[str, str]

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, Any]) -> ChatTemplates:
        """The templates of a directory. Files of their own replace those in tokenizer_config.json.

        Args:
            config: content of tokenizer_config.json.

        Raises:
            TokenizerError: a template is not text, or is too long.
        """
        files = {DEFAULT: directory / "chat_template.jinja"}
        for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
            files[path.name.removesuffix(".jinja")] = path
        found = {
            name: read_text(path, "chat template", TokenizerError, MAX_TEMPLATE_BYTES)
            for name, path in files.items()
            if path.is_file()
        }
        return cls(found or _configured(directory / "tokenizer_config.json", config))

    @property
    def default(self) -> str | None:
        """The template of a conversation without tools, if there is one."""
        return self.by_name.get(DEFAULT)

    def choose(self, name: str | None = None, *, tools: bool = False) -> str:
        """The template of a conversation: `tool_use` where there are tools, else the default.

        Args:
            name: name of another template, or a template.

        Raises:
            PromptError: the model has no such template.
        """
        if name is not None:
            return self.by_name.get(name, name)
        if tools and TOOL_USE in self.by_name:
            return self.by_name[TOOL_USE]
        if DEFAULT in self.by_name:
            return self.by_name[DEFAULT]
        if not self.by_name:
            raise PromptError("the model has no chat template; give the prompt as text, or use --raw")
        raise PromptError(
            "the model has no default chat template; choose one with the template argument chat_template: "
            f"{', '.join(sorted(self.by_name))}"
        )


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **arguments: Any,
) -> str:
    """The text that a chat template makes of a conversation. As in transformers, fields that are None are
    left out of messages.

    Args:
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: end within the last message, for the model to continue it.
        tools: JSON schemas, or functions with type hints and a docstring.
        documents: texts that the answer may use, ``{"title": ..., "text": ...}``.
        arguments: further variables of the template.

    Raises:
        PromptError: messages or tools have a wrong type, or the template exceeds its limits.
        Exception: whatever the template raises.
    """
    if add_generation_prompt and continue_final_message:
        raise PromptError("continue_final_message needs add_generation_prompt to be False")
    if not messages:
        raise PromptError("the conversation is empty; give at least one message")
    chat = [_plain_message(message) for message in messages]
    if continue_final_message:
        _mark_end(chat[-1])
    variables = {
        **{name: _plain(value) for name, value in arguments.items()},
        "messages": chat,
        "tools": None if tools is None else [_schema(tool) for tool in tools],
        "documents": _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = template_sandbox.render(template, variables)
    return _cut_end(text) if continue_final_message else text


def _configured(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates in tokenizer_config.json: one, or several by name."""
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        value = {DEFAULT: value}
    elif isinstance(value, list):
        value = {_entry(entry, "name", path): _entry(entry, "template", path) for entry in value}
    if not isinstance(value, Mapping) or not all(isinstance(template, str) for template in value.values()):
        raise TokenizerError(f"{path}: chat_template is neither a text nor texts by name.")
    if any(len(template) > MAX_TEMPLATE_BYTES for template in value.values()):
        raise TokenizerError(f"{path}: chat_template is longer than {MAX_TEMPLATE_BYTES} characters.")
    return dict(value)


def _entry(entry: Any, key: str, path: Path) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
        raise TokenizerError(f"{path}: an entry of chat_template has no {key}.")
    return str(entry[key])


def _plain_message(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"a chat message is a dictionary with role and content, not {shorten(message)}")
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """`value` in JSON's types. Others become a placeholder: a template must not reach an object's methods."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else list(value)
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _schema(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _plain(tool)
    if not callable(tool):
        raise PromptError(f"a tool is a JSON schema or a function, not {shorten(tool)}")
    from transformers.utils import get_json_schema

    return _plain(get_json_schema(tool))


def _mark_end(message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return
    blocks = content if isinstance(content, list) else []
    for block in reversed(blocks):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            block["text"] += _END_MARK
            return
    raise PromptError("the last message has no text to continue")


def _cut_end(text: str) -> str:
    start = text.rfind(_END_MARK.strip())
    if start < 0:
        raise PromptError("the chat template drops the last message, so it cannot be continued")
    # A template that strips messages has dropped the mark's final space too.
    return text[:start] if text.startswith(_END_MARK, start) else text[:start].rstrip()
