"""Checks of a config.json before its values are used.

Frameworks build modules in loops over these numbers before they look at any tensor, so that one wrong number
is a hang or fills the memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vt_core.errors import ConfigError, shorten
from vt_core.files.model_config import text_config

#: Largest plausible numbers, by words in the name of a field. The first word that fits decides.
_LIMITS = {
    "size": 1 << 24,  # rows of a vocabulary, width of a layer
    "dim": 1 << 24,
    "layer": 20_000,
    "head": 20_000,
    "expert": 20_000,
    "block": 20_000,
    "bits": 64,
}


def check_config(config: dict[str, Any], path: Path) -> None:
    """Check the types and sizes of values that conversion and loading rely on.

    Args:
        path: the file, for messages.

    Raises:
        ConfigError: a value has a wrong type or is larger than in any model.
    """
    for part in (config, text_config(config), config.get("quantization")):
        if not isinstance(part, dict):
            continue
        if not isinstance(part.get("model_type", ""), str):
            raise ConfigError(f"{path}: model_type is {shorten(part['model_type'])}, not text.")
        for name, value in part.items():
            limit = next((limit for word, limit in _LIMITS.items() if word in name), None)
            if limit is not None and isinstance(value, int) and abs(value) > limit:
                raise ConfigError(f"{path}: {name} is {shorten(value)}, more than any model has ({limit}).")
