"""``convert``: a model in, a model directory out."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Float type to store. Default: the model's own; bfloat16 for a quantized GGUF file.",
)
@click.option(
    "--quantize",
    type=click.Choice(["4", "5", "6", "8"]),
    metavar="BITS",
    help="Pack the weights in MLX's affine format with 4, 5, 6 or 8 bits. MLX computes with them as they "
    "are, PyTorch with the floats that they stand for.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    metavar="SIZE",
    help="Weights that share a scale, with --quantize: 32, 64 or 128.  [default: 64]",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
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

    SOURCE is a Hugging Face directory, a hub id or a GGUF file. Neither PyTorch nor MLX is needed, and little
    memory whatever the model. OUT appears whole at the end, or not at all.

    \b
    Examples:
      vt-torch convert HuggingFaceTB/SmolLM2-135M-Instruct smollm2-vt
      vt-torch convert ./Qwen2.5-Coder-0.5B-Instruct qwen-vt --dtype bfloat16
      vt-torch convert gemma-3-270m.Q4_K_M.gguf gemma-vt --force
      vt-mlx convert Qwen/Qwen2.5-Coder-0.5B-Instruct qwen-4bit --quantize 4
    """
    if group_size is not None and quantize is None:
        raise click.UsageError("--group-size goes with --quantize")
    from converters.convert import convert as run
    from vt_core.cli.inspect import size_text
    from vt_core.files.model_dir import ModelDirectory

    path = run(
        source,
        out,
        dtype=dtype,
        quantize=None if quantize is None else int(quantize),
        group_size=int(group_size or 64),
        revision=revision,
        force=force,
    )
    manifest = ModelDirectory.open(path).manifest
    click.echo(f"{out}: {manifest.model_type}, {size_text(manifest.total_bytes)}", err=True)
