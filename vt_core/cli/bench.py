"""``bench``: variants of a model in turn on the same prompts, as tables and pictures."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import (
    FILE,
    data_option,
    device_option,
    dtype_option,
    input_field_option,
    max_tokens_option,
    model_option,
    preset_option,
    quantize_option,
    raw_option,
    revision_option,
    task_option,
    template_option,
)
from vt_core.errors import OptionError
from vt_core.measure.bench.geometry import GEOMETRIES
from vt_core.measure.bench.variants import DEFAULT, STOCK, Variant, parse_variants

if TYPE_CHECKING:
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.measure.bench.prompts import Prompts


@click.command()
@model_option()
@revision_option
@click.option(
    "--geometry",
    type=click.Choice(list(GEOMETRIES)),
    help="In place of a model: random weights of these shapes and random prompts, for speed and memory only.",
)
@task_option
@data_option("Rows with the prompts")
@preset_option()
@input_field_option
@template_option
@raw_option
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Prompts to measure with."
)
@max_tokens_option(64, least=2)
@click.option(
    "--variants",
    default=DEFAULT,
    metavar="LIST",
    help="What to compare, with commas: stock, full, and rebuild, split or prealloc, with -approximate, -ram "
    f"and @ROWS behind it; or all. Default: {DEFAULT}.",
)
@click.option(
    "--sizes", default="", metavar="LIST", help="Numbers of static rows to try prealloc with besides."
)
@click.option(
    "--memory-limit-search",
    "limited",
    default="",
    metavar="LIST",
    help="Variants whose smallest memory at 80 % of the speed is to be found. Linux, as root: it makes "
    "control groups and empties the page cache.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Of the order of the variants, and of random prompts."
)
@click.option(
    "--minimum",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Prompts that a claim needs; rows with fewer make none.",
)
@click.option(
    "--together",
    type=click.IntRange(1),
    help="Variants in memory at a time. Default: as many as it is likely to hold.",
)
@device_option
@dtype_option()
@quantize_option
@click.option("--out", required=True, type=FILE, help="Folder of the results.")
@click.pass_obj
def bench(backend: str, out: Path, **options: Any) -> None:
    """Measure a model with its stock framework and with vt, on the same prompts.

    Each variant runs in a process of its own, each prompt with all variants in turn. OUT gets results.json,
    report.md, report.html and pictures.

    \b
    Examples:
      vt-torch bench --data gsm8k.jsonl --preset math --out smollm2
      vt-torch bench --model qwen-vt --task math.vt.json --data gsm8k.jsonl --sizes 2048,4096,8192 --out qwen
      vt-torch bench --data gsm8k.jsonl --variants stock,full,prealloc --limit 100 --out smollm2
      vt-torch bench --geometry qwen3-0.6b --out qwen3-geometry
    """
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from vt_core.decode.backend import backend as import_backend
    from vt_core.measure.bench.machine import command_text
    from vt_core.measure.bench.output import check_folder, write
    from vt_core.measure.bench.run import Benchmark, run

    variants = parse_variants(options["variants"], options["sizes"])
    limited = _limited(options["limited"], variants)
    check_folder(out)
    import_backend(backend)
    with TemporaryDirectory(prefix="vt-bench-") as scratch:
        directory = _model(options)
        prompts = _prompts(directory, options)
        benchmark = Benchmark(
            backend=backend,
            directory=directory,
            stock=_stock_copy(backend, directory, variants),
            variants=variants,
            tasks=_tasks(directory, variants, options["task"], Path(scratch)),
            prompts=prompts,
            command=command_text(f"vt-{backend}", sys.argv[1:]),
            geometry=options["geometry"],
            limited=limited,
            **{name: options[name] for name in ("max_tokens", "seed", "minimum", "together")},
            **{name: options[name] for name in ("device", "dtype", "quantize")},
        )
        with tqdm(total=benchmark.steps, unit="run", disable=None, desc="loading") as bar:

            def watch(text: str) -> None:
                bar.set_description_str(text)
                bar.update()

            results = run(benchmark, watch)
    write(results, out)
    if not find_spec("matplotlib"):
        click.echo("no pictures: they need matplotlib; install it with: pip install 'vt[plot]'", err=True)
    click.echo(f"{out / 'report.html'}" + (" (random weights)" if options["geometry"] else ""))


def _limited(text: str, variants: list[Variant]) -> list[str]:
    from vt_core.measure.bench import limits

    names = [variant.name for variant in variants]
    asked = names if text == "all" else [name for name in (part.strip() for part in text.split(",")) if name]
    for name in asked:
        if name not in names:
            raise OptionError(f"--memory-limit-search names {name!r}, which is not among --variants")
    if asked:
        limits.check()
    return asked


def _model(options: dict[str, Any]) -> ModelDirectory:
    from converters.cache import resolve
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.measure.bench.geometry import geometry_model

    progress = sys.stderr.isatty()
    if options["geometry"] is None:
        return ModelDirectory.open(resolve(options["model"], revision=options["revision"], progress=progress))
    for name in ("model", "revision", "task", "data", "preset", "input_field", "template", "raw"):
        if options[name]:
            flag = name.replace("_", "-")
            raise OptionError(
                f"--geometry brings its own weights and prompts; leave --{flag} out, or --geometry"
            )
    return geometry_model(options["geometry"], progress)


def _stock_copy(backend: str, directory: ModelDirectory, variants: list[Variant]) -> Path | None:
    if all(variant.name != STOCK for variant in variants):
        return None
    if backend == "torch" and directory.config.get("quantization"):
        raise OptionError(
            "transformers reads no weights in MLX's quantized format; give --variants without stock"
        )
    from converters.export import stock_copy

    return stock_copy(directory)


def _prompts(directory: ModelDirectory, options: dict[str, Any]) -> Prompts:
    from vt_core.measure.bench.prompts import random_prompts, read_prompts
    from vt_core.profile import make_row_format
    from vt_core.vocab.token_bytes import TokenTable
    from vt_core.vocab.tokenizer import Tokenizer

    if options["geometry"] is not None:
        table = TokenTable.load(directory.tokenizer_path)
        ids = table.ordinary_ids().tolist()
        return random_prompts(ids, limit=options["limit"], seed=options["seed"])
    if not options["data"]:
        raise OptionError("There are no prompts to measure with; give --data FILE.")
    layout = make_row_format(options["preset"], options["input_field"], None, options["template"])
    context = directory.context
    return read_prompts(
        options["data"],
        layout,
        Tokenizer(directory.path),
        limit=options["limit"],
        most_tokens=None if context is None else context - options["max_tokens"],
        raw=options["raw"],
    )


def _tasks(
    directory: ModelDirectory, variants: list[Variant], files: tuple[Path, ...], scratch: Path
) -> dict[str, list[str]]:
    """The task-vocabulary files of each variant: those given, or one of the size that it asks for."""
    from vt_core.measure.bench.sizes import write_sized
    from vt_core.vocab.task import TaskVocabulary

    tasks = [TaskVocabulary.load(file, directory.tokenizer_path) for file in files]
    for task in tasks:
        task.check(directory.manifest.tokenizer_digest, directory.manifest.vocab_rows)
    sizes = {variant.rows for variant in variants if variant.rows is not None}
    sized = {rows: str(write_sized(directory, tasks, rows, scratch)) for rows in sizes}
    return {
        variant.name: [str(file) for file in files] if variant.rows is None else [sized[variant.rows]]
        for variant in variants
    }
