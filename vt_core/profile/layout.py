"""Where a row's input and output texts stand, and the prompt that goes around the input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vt_core.errors import OptionError

_NAME = re.compile(r"\{([^{}]+)\}")


class BadRow(Exception):
    """A row that cannot be used; its text says why."""


@dataclass(frozen=True)
class Layout:
    """Fields of a corpus. Of the alternatives, the first whose fields a row has is taken.

    `inputs` are texts with fields in braces, `outputs` names of fields; a dot leads into a table or list, as
    in `answers.text.0`. `prompt` holds `{input}`; its words count as input, because generation will see them.
    """

    inputs: tuple[str, ...] = ("{input}",)
    outputs: tuple[str, ...] = ("output",)
    prompt: str = "{input}"

    def __post_init__(self) -> None:
        if "{input}" not in self.prompt:
            raise OptionError(f"The template {self.prompt!r} does not hold {{input}}.")

    def texts(self, row: object) -> tuple[str, str]:
        """Prompt and output of a row; raises BadRow."""
        return self.prompt_text(row), self._output(row)

    def prompt_text(self, row: object) -> str:
        """The prompt of a row; raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow("not a table of fields")
        return self.prompt.replace("{input}", self._input(row))

    def _input(self, row: Mapping[str, Any]) -> str:
        for template in self.inputs:
            names = _NAME.findall(template)
            values = {name: value for name in names if (value := _find(row, name)) is not None}
            if len(values) == len(set(names)):
                texts = {name: _text(name, value) for name, value in values.items()}
                return _NAME.sub(lambda match: texts[match[1]], template)  # noqa: B023
        raise BadRow(f"lacks the input, {' or '.join(self.inputs)}")

    def references(self, row: object) -> tuple[str, ...]:
        """Every output that a row holds: of a field that leads to the first of a list, all of the list.

        Raises BadRow.
        """
        for name in self.outputs:
            if _find(row, name) is not None:
                listed = _find(row, name.removesuffix(".0")) if name.endswith(".0") else [_find(row, name)]
                return tuple(_text(name, value) for value in listed)
        raise BadRow(f"lacks the output, {' or '.join(self.outputs)}")

    def _output(self, row: object) -> str:
        for name in self.outputs:
            if (value := _find(row, name)) is not None:
                return _text(name, value)
        raise BadRow(f"lacks the output, {' or '.join(self.outputs)}")


PRESETS = {
    "code": Layout(("{prompt}", "{text}", "{input}"), ("canonical_solution", "completion", "code", "output")),
    "math": Layout(("{question}", "{problem}", "{input}"), ("answer", "solution", "output")),
    "qa": Layout(("{context}\n\n{question}", "{input}"), ("answers.text.0", "answer", "output")),
    "summarization": Layout(
        ("{document}", "{article}", "{text}", "{input}"),
        ("summary", "highlights", "output"),
        prompt="Summarize the following article in one sentence.\n\n{input}",
    ),
    "translation": Layout(("{source}", "{src}", "{input}"), ("target", "tgt", "output")),
}
"""Layouts of the public data sets of five tasks; all of them also read `input` and `output`."""


def make_layout(
    preset: str | None = None,
    input_field: str | None = None,
    output_field: str | None = None,
    template: str | None = None,
) -> Layout:
    """The layout of a preset with what is given by name in its place; raises OptionError."""
    if preset is not None and preset not in PRESETS:
        raise OptionError(f"Preset '{preset}' is not known; known are {', '.join(PRESETS)}.")
    base = PRESETS[preset] if preset is not None else Layout()
    return Layout(
        inputs=base.inputs if input_field is None else (f"{{{input_field}}}",),
        outputs=base.outputs if output_field is None else (output_field,),
        prompt=base.prompt if template is None else template,
    )


def _find(row: Any, name: str) -> Any:
    """The value of a field or dotted path; None where there is none."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if isinstance(row, list) and head.isdigit():
        row = row[int(head)] if int(head) < len(row) else None
    else:
        row = row.get(head) if isinstance(row, Mapping) else None
    return _find(row, rest) if rest else row


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
        raise BadRow(f"field '{name}' holds {shown}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"field '{name}' holds half of a surrogate pair, which is no character") from None
    return value
