"""The commands ``vt-mlx`` and ``vt-torch``: one set, built for a backend.

This module imports little, so that Ctrl-C and SIGTERM are handled from the start.
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
    handled = _handle_signals()
    try:
        from vt_core.cli.streams import prepare_streams

        prepare_streams()
        build(backend)(prog_name=f"vt-{backend}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for number in handled:  # a traceback of Python's own shutdown helps nobody
            signal.signal(number, signal.SIG_DFL)


def _handle_signals() -> list[signal.Signals]:
    """Turn SIGINT, SIGTERM and SIGHUP into exceptions, so that a command removes what it has half written.

    Returns the signals that are handled. A signal that the caller ignores, as nohup does, stays ignored.
    """
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    ends = [
        number
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) and signal.getsignal(number) in defaults
    ]
    if ends and hasattr(signal, "SIGALRM"):
        for number in (*ends, signal.SIGALRM):
            signal.signal(number, _Interrupt())
    return ends


class _Interrupt:
    """A signal handler: raises KeyboardInterrupt, or SystemExit for signals other than SIGINT.

    It does not raise while a framework is imported or in a ``__del__``, but tries again 50 ms later.
    Frameworks abort when an import of theirs raises. Python prints and ignores exceptions of ``__del__``.
    """

    #: The signal that came last, for the next try.
    _number = int(signal.SIGINT)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            _Interrupt._number = number
        if _may_not_raise(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        elif _Interrupt._number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + _Interrupt._number)


def _may_not_raise(frame: FrameType | None) -> bool:
    foreign = False
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        foreign = foreign or not (package in _OWN or package in sys.stdlib_module_names)
        importing = foreign and frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        if importing or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
