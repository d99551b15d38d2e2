"""What is asked of each variant or model of an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.errors import PromptError
from vt_core.measure.bootstrap import CONFIDENCE, RESAMPLES
from vt_core.measure.machine import machine, versions
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Record
from vt_core.measure.worker import Worker
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

    def answer(self, worker: Worker, example: Example, kept: Iterable[str]) -> Record:
        """Some fields of a generation, or why the model refused the prompt (as too long)."""
        try:
            found = worker.generate(example.prompt, **self.options)
        except PromptError as error:
            return {"refused": str(error)}
        return {key: found[key] for key in kept}

    def facts(self, settings: Mapping[str, Any], asked: int, answered: int) -> dict[str, Any]:
        """What results say of a run: where and how it ran, and of the ``asked`` rows, how many are scored."""
        return {
            "command": self.command,
            "machine": machine(),
            "versions": versions(self.backend, LIBRARIES),
            "task": self.preset,
            "settings": settings,
            "n": answered,
            "left_out": asked - answered,
            "minimum": self.minimum,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": self.seed,
        }


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
