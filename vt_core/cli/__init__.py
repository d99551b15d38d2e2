"""The commands ``vt-mlx`` and ``vt-torch``: one set, built for a backend.

This module imports little, so that Ctrl-C is handled from the start.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

#: Packages whose imports may be interrupted.
_OWN = ("vt_core", "vt_mlx", "vt_torch", "converters", "click", "__main__", "_frozen_importlib")


def mlx() -> None:
    """Entry point of ``vt-mlx``."""
    _run("mlx")


def torch() -> None:
    """Entry point of ``vt-torch``."""
    _run("torch")


def build(backend: str) -> click.Group:
    """The command group of a backend, ``mlx`` or ``torch``."""
    from vt_core.cli.group import build_group

    return build_group(backend)


def _run(backend: str) -> None:
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupted)
    try:
        from vt_core.cli.streams import prepare_streams

        prepare_streams()
        build(backend)(prog_name=f"vt-{backend}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if handled:  # a traceback of Python's own shutdown helps nobody
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(_signal: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not while a framework is imported or in a ``__del__``: try again 50 ms
    later.

    Frameworks abort the process when an import of theirs raises. Python prints and ignores exceptions of
    ``__del__``.
    """
    foreign = False
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        foreign = foreign or not (package in _OWN or package in sys.stdlib_module_names)
        importing = foreign and frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        if importing or frame.f_code.co_name == "__del__":
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
