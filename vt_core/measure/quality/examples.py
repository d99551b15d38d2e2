"""Examples: rows of evaluation files, and the prompts of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from vt_core.errors import DataError, OptionError
from vt_core.profile.row_format import PRESETS, BadRow, RowFormat, make_row_format
from vt_core.profile.rows import each_row

#: Prompts of the tasks, for models that follow instructions. A translation must name its language.
PROMPTS = {
    "code": "Complete this function. Answer with the code alone.\n\n{input}",
    "intent": "Answer with the intent of this sentence and its slots, as JSON alone.\n\n{input}",
    "math": "Solve step by step. End with #### and the number that is the answer.\n\n{input}",
    "qa": "{input}\n\nAnswer with as few words of the text as possible.",
    "sql": "Write the SQL query that answers this question. Answer with SQL alone.\n\n{input}",
    "summarization": "{input}\n\nSummarize the article in one sentence.",
    "translation": None,
}


@dataclass(frozen=True)
class Example:
    """One row."""

    #: Index of the row over all files.
    row: int
    prompt: str
    #: The input without the prompt around it.
    input: str
    #: Right answers.
    references: tuple[str, ...]
    #: Python code that fails if the answer is wrong.
    tests: str | None = None


@dataclass(frozen=True)
class TestFields:
    """Fields of a row that belong to its unit tests."""

    #: Field of the tests.
    tests: str
    #: Field with the name of the function that the tests call ``candidate``.
    entry_point: str = "entry_point"

    def program(self, row: Any) -> str:
        """The tests of a row as one Python program; raises BadRow."""
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
    """Fields and prompt of a task; raises OptionError."""
    layout = make_row_format(preset, input_field, output_field, template)
    if template is not None:
        return layout
    prompt = PROMPTS[preset]
    if prompt is None:
        raise OptionError(
            f"A {preset} must name its target language; "
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
    """Read the first ``limit`` rows of evaluation files.

    Raises:
        DataError: a file or a row cannot be used, or there is no row.
    """
    found = list(islice(_examples(files, layout, test_fields), limit))
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: no row to evaluate.")
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

    columns = (*layout.columns, *(() if fields is None else (fields.tests, fields.entry_point)))
    return each_row(files, example, columns)


assert PROMPTS.keys() == PRESETS.keys(), "every task has a prompt"
