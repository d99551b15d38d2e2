"""The code in an answer, and the program that tests it."""

from __future__ import annotations

import ast
import re
import warnings

from vt_core.measure.quality.examples import Example

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or the whole of it where there is none."""
    found = _FENCE.search(answer)
    return found[1] if found else answer


def program_of(answer: str, example: Example) -> str:
    """The example's input, the answer, and the tests.

    An answer that says a function of the input again comes behind it and takes its place, another one goes on
    where the input ends. An input that is no code but describes some is left out.
    """
    code = code_of(answer)
    again = set(_functions(code)) & set(_functions(example.input))
    # The input of HumanEval is a signature with its docstring: by itself a function that does nothing.
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
