"""Options that load a model and shape its chat template, for the commands that generate."""

from __future__ import annotations

import math
from typing import Any

import click

from vt_core.cli.options import (
    FILE,
    combined,
    compile_option,
    device_option,
    draft_file_option,
    dtype_option,
    model_option,
    quantize_option,
    revision_option,
    task_option,
)
from vt_core.errors import OptionError, shorten
from vt_core.files.json_files import parse_object, read_json
from vt_core.files.tables import STORES
from vt_core.vocab.heads import HEADS

_LOADING = (
    "revision",
    "adapter",
    "task",
    "draft_file",
    "head",
    "store",
    "device",
    "dtype",
    "quantize",
    "compile",
    "learn",
)

#: Those of :data:`loading_options` apart from the model.
other_loading_options = combined(
    revision_option,
    click.option(
        "--adapter",
        type=FILE,
        metavar="DIR",
        help="LoRA adapter of the model, in the format of PEFT or mlx-lm.",
    ),
    task_option,
    draft_file_option,
    click.option(
        "--head",
        type=click.Choice(list(HEADS)),
        default="prealloc",
        show_default=True,
        help="How the head is stored in memory; full is the original one.",
    ),
    click.option(
        "--store",
        type=click.Choice(STORES),
        default="lmdb",
        show_default=True,
        help="Read vocabulary rows from disk, or keep the tables in host memory.",
    ),
    click.option(
        "--tile-mb",
        type=click.FloatRange(min=0, min_open=True),
        help="Megabytes of the full head to read at a time. Default: what is fastest on the device.",
    ),
    device_option,
    dtype_option(),
    quantize_option,
    compile_option,
    click.option(
        "--learn",
        is_flag=True,
        help="Save the tokens that verification corrected, for the next run: beside the task file, or in the "
        "user's cache.",
    ),
)

loading_options = combined(model_option(), other_loading_options)

template_options = combined(
    click.option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Arguments of the chat template, such as '{\"enable_thinking\": false}'.",
    ),
    click.option(
        "--tools", type=FILE, metavar="FILE", help="JSON list of the tools that the model may call."
    ),
)


def loading_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :data:`loading_options` out of a command's, as arguments of
    :func:`vt_core.load`.
    """
    tile = options.pop("tile_mb")
    if tile is not None and not math.isfinite(tile):
        raise click.BadParameter(f"{tile} is not a size.", param_hint="'--tile-mb'")
    return {
        "path": options.pop("model"),
        "tile_bytes": None if tile is None else max(1, int(tile * 1e6)),
        **{name: options.pop(name) for name in _LOADING},
    }


def template_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :data:`template_options` out of a command's, as arguments of the template."""
    given, tools = options.pop("chat_template_kwargs"), options.pop("tools")
    name = "--chat-template-kwargs"
    arguments = {} if given is None else parse_object(given, name, "set of arguments", OptionError)
    if tools is not None:
        listed = read_json(tools, "list of tools", OptionError)
        if not isinstance(listed, list):
            raise OptionError(f"{tools}: not a list of tools; it holds {shorten(listed, 40)}")
        arguments["tools"] = listed
    return arguments
