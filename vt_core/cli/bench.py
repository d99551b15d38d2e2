"""``bench``: speed and memory of the variants of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import (
    FILE,
    compile_option,
    data_option,
    device_option,
    draft_file_option,
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
from vt_core.measure.geometry import GEOMETRIES
from vt_core.measure.variants import BENCH_DEFAULT, STOCK, Variant, parse_variants

if TYPE_CHECKING:
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.measure.prompts import Prompts


@click.command()
@model_option()
@revision_option
@click.option(
    "--geometry",
    type=click.Choice(list(GEOMETRIES)),
    help="Instead of a model: random weights of these shapes and random prompts, for speed and memory only.",
)
@task_option
@draft_file_option
@data_option("Rows with the prompts")
@preset_option()
@input_field_option
@template_option
@raw_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of prompts.")
@max_tokens_option(64, least=2)
@click.option(
    "--variants",
    default=BENCH_DEFAULT,
    metavar="LIST",
    help="What to compare, separated by commas: stock, full, and rebuild, split or prealloc, which may be "
    "followed by -approximate, -ram and @ROWS; or all. draft and full+draft: prealloc and full, with drafts, "
    "which may be followed by @TOKENS, the number to draft for each read. "
    f"Default: {BENCH_DEFAULT}.",
)
@click.option(
    "--sizes", default="", metavar="LIST", help="Also try prealloc with these numbers of static rows."
)
@click.option(
    "--memory-limit-search",
    "limited",
    default="",
    metavar="LIST",
    help="Variants whose smallest memory at 80 % of the speed is searched. Linux, as root: it makes control "
    "groups and empties the page cache.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the variants' order and of random prompts."
)
@click.option(
    "--minimum",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Number of prompts below which the report warns.",
)
@click.option(
    "--together",
    type=click.IntRange(1),
    help="Number of variants in memory at a time. Default: as many as are likely to fit.",
)
@device_option
@dtype_option()
@quantize_option
@compile_option
@click.option("--out", required=True, type=FILE, help="Folder for the results.")
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
      vt-torch bench --task sql.vt.json --data sql.jsonl --variants stock,prealloc,draft,full+draft --out sql
      vt-torch bench --geometry qwen3-0.6b --out qwen3-geometry
    """
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from vt_core.decode.backend import backend as import_backend
    from vt_core.measure.benchmark import Benchmark, run
    from vt_core.measure.machine import command_text
    from vt_core.measure.output import PAGE, check_folder, folder_lock, write_bench
    from vt_core.vocab.collection import check_task
    from vt_core.vocab.ngrams import NgramTable

    variants = parse_variants(options["variants"], options["sizes"])
    if options["draft_file"] and all(variant.draft != "ngram" for variant in variants):
        raise OptionError(
            "--draft-file is for the variants draft and full+draft; give one of them in --variants"
        )
    limited = _limited(options["limited"], variants)
    check_folder(out)
    for file in options["task"]:
        check_task(file)
    if options["draft_file"]:
        NgramTable.open(options["draft_file"])
    import_backend(backend)
    with folder_lock(out), TemporaryDirectory(prefix="vt-bench-") as scratch:
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
            **{name: options[name] for name in ("device", "dtype", "quantize", "compile", "draft_file")},
        )
        with tqdm(total=benchmark.steps, unit="run", disable=None, desc="loading") as bar:

            def watch(text: str) -> None:
                bar.set_description_str(text)
                bar.update()

            results = run(benchmark, watch)
        no_pictures = write_bench(results, out)
    if no_pictures:
        click.echo(f"no pictures: {no_pictures}", err=True)
    click.echo(f"{out / PAGE}" + (" (random weights)" if options["geometry"] else ""))


def _limited(text: str, variants: list[Variant]) -> list[str]:
    """Names of the variants whose smallest memory is searched."""
    from vt_core.measure import cgroup

    names = [variant.name for variant in variants]
    asked = names if text == "all" else [name for name in (part.strip() for part in text.split(",")) if name]
    for name in asked:
        if name not in names:
            raise OptionError(f"--memory-limit-search names {name!r}, which is not among --variants")
    if asked:
        cgroup.check()
    return asked


def _model(options: dict[str, Any]) -> ModelDirectory:
    from converters.cache import open_model
    from vt_core.measure.geometry import geometry_model

    progress = sys.stderr.isatty()
    if options["geometry"] is None:
        return open_model(options["model"], revision=options["revision"], progress=progress)
    for name in (
        "model",
        "revision",
        "task",
        "draft_file",
        "data",
        "preset",
        "input_field",
        "template",
        "raw",
    ):
        if options[name]:
            flag = name.replace("_", "-")
            raise OptionError(f"--geometry has its own weights and prompts; leave out --{flag} or --geometry")
    return geometry_model(options["geometry"], progress)


def _stock_copy(backend: str, directory: ModelDirectory, variants: list[Variant]) -> Path | None:
    if all(variant.name != STOCK for variant in variants):
        return None
    if backend == "torch" and directory.config.get("quantization"):
        raise OptionError(
            "transformers does not read weights in MLX's quantized format; give --variants without stock"
        )
    from converters.export import stock_copy

    return stock_copy(directory)


def _prompts(directory: ModelDirectory, options: dict[str, Any]) -> Prompts:
    from vt_core.measure.prompts import random_prompts, read_prompts
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
        max_tokens=None if context is None else context - options["max_tokens"],
        raw=options["raw"],
    )


def _tasks(
    directory: ModelDirectory, variants: list[Variant], files: tuple[Path, ...], scratch: Path
) -> dict[str, list[str]]:
    """Files of task vocabularies for each variant: those given, or one of the size that it asks for."""
    from vt_core.measure.vocabularies import sized
    from vt_core.vocab.collection import find_task
    from vt_core.vocab.task import TaskVocabulary

    files = tuple(find_task(file, directory.manifest.tokenizer_digest) for file in files)
    tasks = [TaskVocabulary.load(file, directory.tokenizer_path) for file in files]
    for task in tasks:
        task.check(directory.manifest.tokenizer_digest, directory.manifest.vocab_rows)
    made = {}
    for rows in {variant.rows for variant in variants if variant.rows is not None}:
        made[rows] = scratch / f"{rows}.vt.json"
        sized(directory, tasks, rows).save(made[rows])
    return {
        variant.name: [str(file) for file in (files if variant.rows is None else [made[variant.rows]])]
        for variant in variants
    }
