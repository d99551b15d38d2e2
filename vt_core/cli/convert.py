"""``convert``: a model in, a model directory out."""

from __future__ import annotations

from pathlib import Path

import click

from converters.quantize import BITS
from vt_core.cli.options import FILE, dtype_option, revision_option
from vt_core.errors import escape_controls
from vt_core.files.integers import MODES
from vt_core.files.quantization import GROUP_SIZES


@click.command()
@click.argument("source", type=click.Path())
@click.argument("out", type=FILE)
@dtype_option("Float type to store. Default: the model's own; bfloat16 for a quantized GGUF file.")
@click.option(
    "--quantize",
    type=click.Choice([*MODES, *map(str, BITS)]),
    metavar="HOW",
    help=f"For vt-torch, {' or '.join(MODES)}: linear layers of 8 or 4 bits, a head of 8. For vt-mlx, "
    f"{', '.join(map(str, BITS))} bits in MLX's affine format, which PyTorch reads as floats.",
)
@click.option(
    "--group-size",
    type=click.Choice([str(size) for size in GROUP_SIZES]),
    metavar="SIZE",
    help=f"Weights that share a scale in MLX's format: {', '.join(map(str, GROUP_SIZES))}.  [default: 64]",
)
@revision_option
@click.option("--force", is_flag=True, help="Replace the model directory OUT where there is one.")
def convert(
    source: str,
    out: Path,
    dtype: str | None,
    quantize: str | None,
    group_size: str | None,
    revision: str | None,
    force: bool,
) -> None:
    """Convert SOURCE into the model directory OUT.

    SOURCE is a Hugging Face directory, a hub id or a GGUF file, and with --quantize also a model directory of
    floats. Neither PyTorch nor MLX is needed, and memory stays small for models of any size. OUT appears when
    it is complete; a failed run leaves nothing.

    \b
    Examples:
      vt-torch convert HuggingFaceTB/SmolLM2-135M-Instruct smollm2-vt
      vt-torch convert ./Qwen2.5-Coder-0.5B-Instruct qwen-vt --dtype bfloat16
      vt-torch convert gemma-3-270m.Q4_K_M.gguf gemma-vt --force
      vt-torch convert Qwen/Qwen2.5-Coder-0.5B-Instruct qwen-int8 --quantize int8
      vt-mlx convert Qwen/Qwen2.5-Coder-0.5B-Instruct qwen-4bit --quantize 4
    """
    if group_size is not None and (quantize is None or quantize in MODES):
        raise click.UsageError(f"--group-size goes with --quantize {', '.join(map(str, BITS))}")
    from converters.convert import convert as run
    from vt_core.cli.inspect import size_text
    from vt_core.files.model_dir import ModelDirectory

    path = run(
        source,
        out,
        dtype=dtype,
        quantize=quantize if quantize is None or quantize in MODES else int(quantize),
        group_size=int(group_size or 64),
        revision=revision,
        force=force,
    )
    manifest = ModelDirectory.open(path).manifest
    done = f"{out}: {manifest.model_type}, {size_text(manifest.total_bytes)}"
    click.echo(escape_controls(done), err=True)
