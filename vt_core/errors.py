"""All errors that a user can cause. Each carries one sentence: what is wrong, where, and what to do.

    VtError
    ├── ModelError            a model source or a model directory cannot be used
    │   ├── ConfigError       config.json or generation_config.json says something impossible
    │   ├── StoreError        the row store is missing, damaged or foreign, or has no such row
    │   └── TokenizerError    the tokenizer cannot be read or does not fit the model
    ├── VocabularyError       a task vocabulary, counts or learned ids cannot be used with this model
    ├── DataError             an input file cannot be read, or a line of it cannot be used
    ├── OutputError           a file cannot be written
    ├── PromptError           a prompt cannot be run: empty, too long, or with ids outside the table
    ├── SessionError          a saved session cannot be read, or belongs to another model
    ├── OptionError           an option is out of range or does not go with another
    │   └── ConstraintError   a schema, expression or grammar cannot be enforced, or allows no text
    ├── BackendError          a backend is not installed, unknown, or cannot do this on this machine
    └── SandboxError          generated programs cannot be run safely on this machine

The command line prints the sentence and exits with code 2. It catches nothing else, so a traceback always
means a bug in this package.
"""

from __future__ import annotations

import re
import reprlib

#: Characters of an error's text that are shown. Damaged files can put megabytes into a message.
MESSAGE_LIMIT = 2000
#: Control characters, and marks that reorder or break a line on a terminal (bidirectional text, U+2028).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class VtError(Exception):
    """Base of every error that a user can cause or fix. Its text is one printable line."""

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > MESSAGE_LIMIT:
            text = f"{text[: MESSAGE_LIMIT // 2]} […] {text[-MESSAGE_LIMIT // 2 :]}"
        return escape_controls(" ".join(text.splitlines()))


class ModelError(VtError):
    """A model source or a model directory cannot be used."""


class ConfigError(ModelError):
    """config.json or generation_config.json says something impossible."""


class StoreError(ModelError):
    """The row store is missing, damaged or foreign, or has no such row."""


class TokenizerError(ModelError):
    """The tokenizer cannot be read or does not fit the model."""


class VocabularyError(VtError):
    """A task vocabulary, counts or learned ids cannot be used with this model."""


class DataError(VtError):
    """An input file cannot be read, or a line of it cannot be used."""


class OutputError(VtError):
    """A file cannot be written."""


class PromptError(VtError):
    """A prompt cannot be run: empty, too long, or with ids outside the table."""


class SessionError(VtError):
    """A saved session cannot be read, or belongs to another model."""


class OptionError(VtError):
    """An option is out of range or does not go with another."""


class ConstraintError(OptionError):
    """A JSON schema, regular expression or grammar cannot be enforced, or allows no text."""


class BackendError(VtError):
    """A backend is not installed, unknown, or cannot do this on this machine."""


class SandboxError(VtError):
    """Generated programs cannot be run safely on this machine."""


def escape_controls(text: str) -> str:
    """`text` with control characters, terminal escapes and surrogates shown as ``\\x1b`` and the like."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shorten(value: object, limit: int = 100) -> str:
    """`repr(value)` in at most `limit` characters; long and nested values are cut."""
    maker = reprlib.Repr()
    maker.maxstring = maker.maxother = maker.maxlong = limit
    maker.maxlevel = 3
    try:
        text = maker.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
