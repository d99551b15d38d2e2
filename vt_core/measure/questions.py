"""What is asked of each variant or model of an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.profile.row_format import RowFormat

#: Libraries that the metrics depend on.
LIBRARIES = ("tokenizers", "sacrebleu", "rouge-score")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Rows to answer, and how."""

    backend: str
    preset: str
    layout: RowFormat
    data: Sequence[Path]
    out: Path
    #: Of the bootstrap.
    seed: int
    #: Number of rows below which the report warns.
    minimum: int
    max_tokens: int = 256
    stop: Sequence[str] = ()
    raw: bool = False
    system: str | None = None
    #: Tokenizer of sacreBLEU.
    tokenize: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    command: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of :meth:`vt_core.Model.stream`."""
        found: dict[str, Any] = {"max_tokens": self.max_tokens, "stop": list(self.stop), "raw": self.raw}
        return found if self.system is None else found | {"system": self.system}

    def settings(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What every answer depends on beside the model; ``about`` is that of a worker."""
        return {
            "backend": self.backend,
            "device": about["device"],
            "dtype": about["dtype"],
            "quantize": self.quantize,
            "data": [[path.name, digest(path.read_bytes())] for path in self.data],
            "inputs": list(self.layout.inputs),
            "outputs": list(self.layout.outputs),
            "prompt": self.layout.prompt,
            **self.options,
        }


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
