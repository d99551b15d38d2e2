"""What is asked of every variant: the rows of evaluation files, and the five tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from vt_core.errors import DataError, OptionError
from vt_core.profile.row_format import PRESETS, BadRow, RowFormat, make_row_format
from vt_core.profile.rows import each_row

PROMPTS = {
    "code": "Complete this function. Answer with the code alone.\n\n{input}",
    "math": "Solve step by step. End with #### and the number that is the answer.\n\n{input}",
    "qa": "{input}\n\nAnswer with as few words of the text as possible.",
    "summarization": "{input}\n\nSummarize the article in one sentence.",
    "translation": None,
}
"""Prompts of the tasks for models that follow instructions. A translation has to name its language."""


@dataclass(frozen=True)
class Example:
    """One row: what is asked, and what the answer is held against."""

    row: int
    """Number of the row in its files, from 0."""
    prompt: str
    input: str
    references: tuple[str, ...]
    tests: str | None = None
    """Code that fails where the answer is wrong."""


@dataclass(frozen=True)
class TestFields:
    """Where a row holds its unit tests, and the name of the function that they call `candidate`."""

    tests: str
    entry_point: str = "entry_point"

    def program(self, row: Any) -> str:
        """The tests of a row as one program; raises BadRow."""
        tests = row.get(self.tests)
        if isinstance(tests, list) and all(isinstance(line, str) for line in tests):
            tests = "\n".join(tests)
        if not isinstance(tests, str) or not tests.strip():
            raise BadRow(f"field '{self.tests}' holds no unit tests")
        entry = row.get(self.entry_point)
        if entry is None:
            return tests
        if not isinstance(entry, str) or not entry.isidentifier():
            raise BadRow(f"field '{self.entry_point}' holds {entry!r}, not the name of a function")
        return f"{tests}\n\ncheck({entry})"


def task_layout(
    preset: str, input_field: str | None, output_field: str | None, template: str | None
) -> RowFormat:
    """Fields of a task's rows and its prompt; raises OptionError."""
    layout = make_row_format(preset, input_field, output_field, template)
    if template is not None:
        return layout
    prompt = PROMPTS[preset]
    if prompt is None:
        raise OptionError(
            f"A {preset} needs to say into which language; "
            "give for example --template 'Translate into Italian: {input}'."
        )
    return replace(layout, prompt=prompt)


def read_examples(
    files: Sequence[str | Path],
    layout: RowFormat,
    *,
    limit: int | None = None,
    test_fields: TestFields | None = None,
) -> list[Example]:
    """The first `limit` rows of evaluation files.

    Raises DataError for a file or row that cannot be used, and where there is no row.
    """
    found = list(islice(_examples(files, layout, test_fields), limit))
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: there is no row to evaluate.")
    return found


def _examples(files: Sequence[str | Path], layout: RowFormat, fields: TestFields | None) -> Iterator[Example]:
    bare = replace(layout, prompt="{input}")
    numbers = count()

    def example(row: Any) -> Example:
        return Example(
            row=next(numbers),
            prompt=layout.prompt_text(row),
            input=bare.prompt_text(row),
            references=layout.references(row),
            tests=None if fields is None else fields.program(row),
        )

    return each_row(files, example)


assert PROMPTS.keys() == PRESETS.keys(), "every task has a prompt"
