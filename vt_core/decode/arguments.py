"""Checks of the arguments that an application passes. A wrong type fails before anything runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from vt_core.errors import OptionError, shorten


def whole(name: str, value: object) -> int:
    """A Python integer from any integer type, numpy's included.

    Raises:
        OptionError: the value is not an integer.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise _wrong(name, value, "a whole number")


def number(name: str, value: object) -> float:
    """A Python float from any real number type, numpy's included.

    Raises:
        OptionError: the value is not a number.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _wrong(name, value, "a number")


def flag(name: str, value: object) -> bool:
    """A Python bool.

    Raises:
        OptionError: the value is not a bool.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise _wrong(name, value, "True or False")


def text(name: str, value: object) -> str:
    """A string.

    Raises:
        OptionError: the value is not a string.
    """
    if isinstance(value, str):
        return value
    raise _wrong(name, value, "text")


def texts(name: str, value: object) -> tuple[str, ...]:
    """Strings from one string or a sequence of them.

    Raises:
        OptionError: the value is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(name, value, "text, or a list of texts")


def mapping(name: str, value: object) -> dict[str, Any]:
    """A dictionary with string keys; None is an empty one.

    Raises:
        OptionError: the value is not a mapping, or a key is not a string.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise _wrong(name, value, "a dictionary with text keys")


def path(name: str, value: object) -> str | Path:
    """A file path or an id, as a string or a path object.

    Raises:
        OptionError: the value is neither, or no file can have this name.
    """
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and "\0" not in text:
            return value if isinstance(value, str) else Path(value)
    raise _wrong(name, value, "a path")


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """One of some strings.

    Raises:
        OptionError: the value is not among them.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise OptionError(f"unknown {name} {shorten(value)}: choose one of {', '.join(choices)}")


def _wrong(name: str, value: object, wanted: str) -> OptionError:
    return OptionError(f"{name} is {shorten(value)}, but it must be {wanted}")
