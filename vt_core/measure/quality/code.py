"""Extracts the code from an answer, and makes the program that tests it."""

from __future__ import annotations

import ast
import re
import warnings

from vt_core.measure.quality.examples import Example

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or the whole answer if it has none."""
    found = _FENCE.search(answer)
    return found[1] if found else answer


def program_of(answer: str, example: Example) -> str:
    """The program that tests an answer: the example's input, the answer's code, and the tests.

    Code that defines a function of the input again follows it and replaces the function; other code continues
    the input. An input that is not valid Python is left out.
    """
    code = code_of(answer)
    again = set(_functions(code)) & set(_functions(example.input))
    # HumanEval's input is a signature with a docstring, which is a valid function that does nothing.
    whole = f"{example.input}\n\n{code}" if again else f"{example.input}{code}"
    return f"{whole if _parses(whole) else code}\n\n{example.tests}\n"


def _functions(code: str) -> list[str]:
    return re.findall(r"^def (\w+)", code, re.MULTILINE)


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
