"""The digest of a tokenizer.json in little memory."""

from __future__ import annotations

import re
from pathlib import Path

from vt_core.errors import TokenizerError
from vt_core.files.json_files import read_bytes
from vt_core.vocab.token_bytes import TokenTable, parse_tokenizer_json

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
# Within a string the quotes are escaped, so this is a key, and the only one of its name that holds a list.
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_MERGE = re.compile(rb"\s*(?:%b|\[\s*%b\s*,\s*%b\s*\])\s*,?" % (_STRING, _STRING, _STRING))
_END = re.compile(rb"\s*\]")


def digest(path: Path) -> str:
    """The same digest as `vt_core.vocab.token_bytes.tokenizer_digest`, without parsing the merges.

    The digest does not depend on the merges, and they are most of the file: parsing Gemma 3's 33 MB took
    284 MiB of memory, and 109 MiB without them.

    Raises:
        TokenizerError: a tokenizer file cannot be read.
    """
    content = without_merges(read_bytes(path, "tokenizer", TokenizerError))
    return TokenTable.from_json(parse_tokenizer_json(content, path), str(path)).digest()


def without_merges(text: bytes) -> bytes:
    """A tokenizer.json with an empty list of merges; as it is where they do not look like merges."""
    start = _MERGES.search(text)
    if start is None:
        return text
    position = start.end()
    while merge := _MERGE.match(text, position):
        position = merge.end()
    return text[: start.end()] + text[position:] if _END.match(text, position) else text
