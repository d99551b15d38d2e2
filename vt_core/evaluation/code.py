"""The code in an answer, and the program that tests it."""

from __future__ import annotations

import re

from vt_core.evaluation.examples import Example

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or the whole of it where there is none."""
    found = _FENCE.search(answer)
    return found[1] if found else answer


def program_of(answer: str, example: Example) -> str:
    """The example's input, the answer, and the tests.

    An answer that says a function of the input again comes behind it and takes its place; one that does not
    goes on where the input ends.
    """
    code = code_of(answer)
    again = set(_functions(code)) & set(_functions(example.input))
    # The input of HumanEval is a signature with its docstring: by itself a function that does nothing.
    return (
        f"{example.input}\n\n{code}\n\n{example.tests}\n"
        if again
        else (f"{example.input}{code}\n\n{example.tests}\n")
    )


def _functions(code: str) -> list[str]:
    return re.findall(r"^def (\w+)", code, re.MULTILINE)
