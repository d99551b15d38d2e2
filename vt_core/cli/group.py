"""The group of commands, and what becomes of their errors."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from vt_core import __version__
from vt_core.cli.streams import PipeClosed, discard_output, escape_text
from vt_core.errors import VtError


class Commands(click.Group):
    """Turns errors that a user can fix into one line and exit code 2, and interrupts into code 130."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line. Printing help can fail too, outside of :meth:`invoke`."""
        try:
            return super().main(*args, **options)
        except VtError as error:
            _report(options.get("prog_name") or "vt", error)
            sys.exit(2)
        except PipeClosed:
            discard_output()
            sys.exit(0)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the arguments up to the name of the command."""
        with _escaped():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        name = ctx.info_name or "vt"
        try:
            with _escaped():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VtError as error:
            _report(name, error)
            ctx.exit(2)
        except MemoryError:
            _report(name, "out of memory; try a smaller model or --dtype bfloat16")
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape control characters in click's messages, which quote arguments."""
    try:
        yield
    except click.ClickException as error:
        error.message = escape_text(error.message)  # type: ignore[misc]
        raise


def _report(name: str, error: object) -> None:
    click.echo(f"{name}: {error}", err=True)
    try:
        sys.stdout.flush()
    except (VtError, OSError):
        discard_output()


def build_group(backend: str) -> click.Group:
    """The command group of a backend, ``mlx`` or ``torch``."""
    from vt_core.cli.bench import bench
    from vt_core.cli.chat import chat
    from vt_core.cli.convert import convert
    from vt_core.cli.enrich import enrich
    from vt_core.cli.eval import evaluate
    from vt_core.cli.finetune import finetune
    from vt_core.cli.generate import generate
    from vt_core.cli.inspect import inspect
    from vt_core.cli.profile import profile
    from vt_core.cli.serve import serve

    @click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "obj": backend})
    @click.version_option(__version__, prog_name=f"vt-{backend}")
    def group() -> None:
        """Exact, low-memory generation for small language models."""

    for command in (generate, chat, serve, convert, profile, enrich, finetune, inspect, bench, evaluate):
        own = copy.copy(command)
        # Help texts are written for vt-torch; their examples must run when pasted.
        own.help = (command.help or "").replace("vt-torch", f"vt-{backend}")
        group.add_command(own)
    return group
