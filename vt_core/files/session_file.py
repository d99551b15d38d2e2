"""Saved sessions: the caches of a conversation as safetensors, and what they belong to as JSON beside them.

The arrays are in storage dtypes (bfloat16 carried as uint16, as in the row store). The header's metadata has
one field, ``session``: a JSON object with the format version, the model's identity and the conversation.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from vt_core.errors import SessionError
from vt_core.files.json_files import parse_object, write_atomically

FORMAT_VERSION = 1
_FIELD = "session"

#: What badly formed content raises in the code that walks it.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


def save(path: str | Path, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
    """Write a session file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
        SessionError: the content is not JSON, such as functions among the template's arguments.
    """
    try:
        header = json.dumps({"format_version": FORMAT_VERSION, **content}, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise SessionError(f"{path}: this conversation cannot be saved ({error}).") from error
    write_atomically(path, serialize(dict(arrays), {_FIELD: header}))


def load(path: str | Path, model: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and content of a session file of the model with this identity.

    Raises:
        SessionError: the file cannot be read, or belongs to another model, backend or float type.
    """
    if not Path(path).is_file():
        raise SessionError(f"{path} is not a file; give a session that was saved before.")
    try:
        # The library checks the header and every tensor's place before anything is read.
        with safe_open(path, "numpy") as file:
            header = (file.metadata() or {}).get(_FIELD)
            if header is None:
                raise SessionError(f"{path} is not a session file: its header has no field '{_FIELD}'.")
            content = parse_object(header, path, "session file", SessionError)
            if content.get("format_version") != FORMAT_VERSION:
                raise SessionError(
                    f"{path} has format version {content.get('format_version')!r}, and this vt reads version "
                    f"{FORMAT_VERSION}; start a new session."
                )
            found = content.get("model")
            saved = found if isinstance(found, dict) else {}
            for name in (*model, *saved):
                if saved.get(name) != model.get(name):
                    raise SessionError(
                        f"{path} was saved with {name} {saved.get(name)!r}, and this model has "
                        f"{model.get(name)!r}; load the session with the model that saved it."
                    )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SessionError(f"{path} cannot be read as a session ({error}).") from error
    return arrays, content


@contextlib.contextmanager
def refused(path: str | Path) -> Iterator[None]:
    """Turn what malformed content raises into one sentence."""
    try:
        yield
    except _MALFORMED as error:
        raise SessionError(f"{path} is not a whole session ({type(error).__name__}: {error}).") from error
