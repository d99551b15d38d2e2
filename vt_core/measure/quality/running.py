"""Every variant's answer to every example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vt_core.errors import PromptError
from vt_core.measure.quality.examples import Example
from vt_core.measure.quality.predictions import Predictions, Record
from vt_core.measure.quality.variants import VARIANTS
from vt_core.measure.quality.vocabularies import Vocabularies
from vt_core.model import Model

KEPT = (
    *("text", "token_ids", "finish_reason", "prompt_tokens", "generated_tokens"),
    *("static_rows", "learned_rows", "dynamic_rows", "rescued"),
)
"""What is kept of a generation."""


@dataclass(frozen=True)
class Questions:
    """What every variant is asked, and where its answers go. `options` are those of `Model.generate`."""

    examples: Sequence[Example]
    options: dict[str, Any]
    vocabularies: Vocabularies
    predictions: Predictions
    on_answers: Callable[[int], object]

    def ask(self, name: str, model: Model) -> None:
        """A variant's answers to the examples that it has not answered yet.

        A prompt that the model refuses, being too long, is noted as such.
        """
        missing = [example for example in self.examples if self.predictions.get(name, example.row) is None]
        self.on_answers(len(self.examples) - len(missing))
        if missing:
            self.vocabularies.use(model, VARIANTS[name])
        for example in missing:
            self.predictions.add({"variant": name, "row": example.row, **self._answer(model, name, example)})
            self.on_answers(1)

    def _answer(self, model: Model, name: str, example: Example) -> Record:
        variant = VARIANTS[name]
        try:
            values = model.generate(
                example.prompt, approximate=not variant.exact, dynamic=variant.dynamic, **self.options
            ).to_dict()
        except PromptError as error:
            return {"refused": str(error)}
        return {key: values[key] for key in KEPT}
