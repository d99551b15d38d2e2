"""How a corpus row becomes an example: the fields of input and output, and the prompt around the input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vt_core.errors import OptionError

_FIELD = re.compile(r"\{([^{}]+)\}")


class BadRow(Exception):
    """A row that cannot be used. The text is the reason."""


@dataclass(frozen=True)
class RowFormat:
    """Fields of a corpus, and the prompt template."""

    #: Alternatives for the input: texts with field names in braces. The first whose fields a row has is used.
    #: A dot in a name leads into an object or a list, as in ``answers.text.0``.
    inputs: tuple[str, ...] = ("{input}",)
    #: Alternatives for the output: names of fields.
    outputs: tuple[str, ...] = ("output",)
    #: Text with ``{input}``. The input-aware filter counts its tokens as input, as generation sees them too.
    prompt: str = "{input}"

    def __post_init__(self) -> None:
        if "{input}" not in self.prompt:
            raise OptionError(f"The template {self.prompt!r} does not contain {{input}}.")

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Names of all fields that an input may use, each also a path if it has dots."""
        names = (name for template in self.inputs for name in _FIELD.findall(template))
        return tuple(dict.fromkeys(names))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all fields that an example may use, each also a path if it has dots."""
        lists = (name.removesuffix(".0") for name in self.outputs)
        return tuple(dict.fromkeys((*self.input_columns, *self.outputs, *lists)))

    def texts(self, row: object) -> tuple[str, str]:
        """Prompt and output of a row. Raises BadRow."""
        return self.prompt_text(row), self._output(row)

    def prompt_text(self, row: object) -> str:
        """The prompt of a row. Raises BadRow."""
        if not isinstance(row, Mapping):
            raise BadRow("not a JSON object with fields")
        return self.prompt.replace("{input}", self._input(row))

    def references(self, row: object) -> tuple[str, ...]:
        """Every output of a row. Where the output's name ends in ``.0``, all entries of that list.

        Raises BadRow.
        """
        for name in self.outputs:
            if _find(row, name) is not None:
                entries = _find(row, name.removesuffix(".0")) if name.endswith(".0") else [_find(row, name)]
                return tuple(_text(name, value) for value in entries)
        raise BadRow(f"lacks the output, {' or '.join(self.outputs)}")

    def _input(self, row: Mapping[str, Any]) -> str:
        for template in self.inputs:
            names = _FIELD.findall(template)
            values = {name: value for name in names if (value := _find(row, name)) is not None}
            if len(values) == len(set(names)):
                texts = {name: _text(name, value) for name, value in values.items()}
                return _FIELD.sub(lambda match: texts[match[1]], template)  # noqa: B023
        raise BadRow(f"lacks the input, {' or '.join(self.inputs)}")

    def _output(self, row: object) -> str:
        for name in self.outputs:
            if (value := _find(row, name)) is not None:
                return _text(name, value)
        raise BadRow(f"lacks the output, {' or '.join(self.outputs)}")


#: Formats of the public data sets of some tasks. All of them also accept `input` and `output`.
PRESETS = {
    "code": RowFormat(
        ("{prompt}", "{text}", "{input}"), ("canonical_solution", "completion", "code", "output")
    ),
    "intent": RowFormat(("{utterance}", "{text}", "{input}"), ("parse", "output")),
    "math": RowFormat(("{question}", "{problem}", "{input}"), ("answer", "solution", "output")),
    "qa": RowFormat(("{context}\n\n{question}", "{input}"), ("answers.text.0", "answer", "output")),
    "sql": RowFormat(("{question}", "{input}"), ("query", "sql", "output")),
    "summarization": RowFormat(
        ("{document}", "{article}", "{text}", "{input}"),
        ("summary", "highlights", "output"),
        prompt="Summarize the following article in one sentence.\n\n{input}",
    ),
    "translation": RowFormat(("{source}", "{src}", "{input}"), ("target", "tgt", "output")),
}


def make_row_format(
    preset: str | None = None,
    input_field: str | None = None,
    output_field: str | None = None,
    template: str | None = None,
) -> RowFormat:
    """The format of a preset, with the given parts replaced. Raises OptionError."""
    if preset is not None and preset not in PRESETS:
        raise OptionError(f"Preset '{preset}' is not known; known presets are {', '.join(PRESETS)}.")
    base = PRESETS[preset] if preset is not None else RowFormat()
    return RowFormat(
        inputs=base.inputs if input_field is None else (f"{{{input_field}}}",),
        outputs=base.outputs if output_field is None else (output_field,),
        prompt=base.prompt if template is None else template,
    )


def _find(row: Any, name: str) -> Any:
    """The value of a field or of a dotted path; None if there is none."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if isinstance(row, list) and head.isdecimal():
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
        raise BadRow(f"field '{name}' holds half of a surrogate pair, which is not a character") from None
    return value
