"""The commands ``vt-mlx`` and ``vt-torch``: one set, built for a backend."""

from __future__ import annotations

import copy
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from vt_core import __version__
from vt_core.errors import VtError


class Commands(click.Group):
    """Turns what a user can mend into one line and exit code 2, and leaves quietly when interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VtError as error:
            click.echo(f"{ctx.info_name}: {error}", err=True)
            ctx.exit(2)
        except MemoryError:
            click.echo(
                f"{ctx.info_name}: the memory does not suffice; try a smaller model or --dtype bfloat16",
                err=True,
            )
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            # The reader has gone. Whatever Python flushes on its way out must have somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


def build(backend: str) -> click.Group:
    """The command group of a backend, ``mlx`` or ``torch``."""
    from vt_core.cli.bench import bench
    from vt_core.cli.convert import convert
    from vt_core.cli.eval import evaluate
    from vt_core.cli.generate import generate
    from vt_core.cli.inspect import inspect
    from vt_core.cli.profile import profile

    @click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "obj": backend})
    @click.version_option(__version__, prog_name=f"vt-{backend}")
    def group() -> None:
        """Low-memory generation for small language models, with the vocabulary tables on disk."""

    for command in (generate, convert, profile, inspect, bench, evaluate):
        own = copy.copy(command)
        # Help texts are written for one of the two names; examples must be right to paste for both.
        own.help = (command.help or "").replace("vt-torch", f"vt-{backend}")
        group.add_command(own)
    return group


def mlx() -> None:
    """Entry point of ``vt-mlx``."""
    _run("mlx")


def torch() -> None:
    """Entry point of ``vt-torch``."""
    _run("torch")


def _run(backend: str) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupted)
    try:
        build(backend)(prog_name=f"vt-{backend}")
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupted(_signal: int, frame: FrameType | None) -> None:
    """What Ctrl-C does: an exception, but not before what is being imported or finalized now has been.

    Frameworks abort the process, with a message, when an exception comes out of what they import; and what
    comes out of a ``__del__`` is printed and forgotten.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" or frame.f_code.co_name == "__del__":
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # and then again
            return
        frame = frame.f_back
    raise KeyboardInterrupt
