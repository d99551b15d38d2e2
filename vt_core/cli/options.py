"""Options that several commands share."""

from __future__ import annotations

import click

quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Hold linear layers in 8 or 4 bits and the head in 8, quantized while loading (PyTorch). Exact then "
    "means the text of that head.",
)

device_option = click.option(
    "--device", help="Device of the backend, such as cpu or cuda. Default: the best there is."
)

dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Float type to run in. Default: what the device runs well.",
)
