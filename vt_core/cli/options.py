"""Options that several commands share."""

from __future__ import annotations

import click

quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Hold linear layers in 8 or 4 bits and the head in 8, quantised while loading (PyTorch). Exact then "
    "means the text of that head.",
)
