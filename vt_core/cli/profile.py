"""``profile``: a corpus in, a task vocabulary out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import (
    FILE,
    data_option,
    device_option,
    input_field_option,
    json_option,
    max_tokens_option,
    model_option,
    output_field_option,
    preset_option,
    revision_option,
    template_option,
)
from vt_core.errors import DataError, OptionError

if TYPE_CHECKING:
    from vt_core.profile import Counts, Profiler, Stages
    from vt_core.profile.checkpoint import Checkpoint
    from vt_core.profile.own_outputs import Generate


@click.command()
@model_option(", or a tokenizer.json or a directory that holds one")
@revision_option
@click.option(
    "--vocab-rows",
    type=click.IntRange(1),
    help="Rows of the model's table, where only its tokenizer is given. Default: the tokenizer's size.",
)
@data_option("Corpus")
@preset_option()
@input_field_option
@output_field_option
@template_option
@click.option(
    "--language",
    "languages",
    multiple=True,
    metavar="NAME",
    help="Keep only tokens of these languages and of code, math or emoji; repeatable. Default: no filter.",
)
@click.option("--tolerance", type=float, help="Share of the examples that may lose a token.  [default: 0.01]")
@click.option("--rows", type=int, help="Ids in the vocabulary, instead of a tolerance.")
@click.option(
    "--prior", type=int, default=8192, show_default=True, help="Ordinary ids of the rank prior; 0: none."
)
@click.option("--no-input-aware", is_flag=True, help="Also count output tokens that stand in the input.")
@click.option(
    "--held-out",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Measure the coverage of this file's outputs; repeatable.",
)
@click.option("--report", type=FILE, help="Write the coverage report as JSON.")
@click.option("--plot", type=FILE, help="Draw the coverage over sizes as PNG.")
@click.option(
    "--miss-rate", type=click.FloatRange(0, 1), help="Say which size has this share of missing tokens."
)
@click.option(
    "--self",
    "own",
    is_flag=True,
    help="Count what the model writes for the inputs, instead of the outputs in the files.",
)
@click.option(
    "--self-weight",
    type=click.IntRange(1),
    help="With --self: count the files' outputs too, and what the model writes as so many examples.",
)
@max_tokens_option(text="With --self: most tokens to generate.")
@click.option("--limit", type=click.IntRange(1), help="With --self: rows to write for.")
@device_option
@click.option(
    "--merge",
    multiple=True,
    type=FILE,
    metavar="COUNTS",
    help="Add saved counts, and those of the files after it; repeatable.",
)
@click.option("--save-counts", type=FILE, metavar="FILE", help="Save the counts.")
@click.option(
    "--processes", type=click.IntRange(1), help="Default: one for small files, else one a processor."
)
@click.option("--skip-bad", is_flag=True, help="Count rows that cannot be used, and go on.")
@click.option("--name", help="Name of the task. Default: from --out.")
@json_option
@click.option("--published", is_flag=True, help="Write {token string: id}, the published code's form.")
@click.option("--out", required=True, type=FILE, help="The task vocabulary, NAME.vt.json.")
@click.argument("more_counts", nargs=-1, type=FILE, metavar="[COUNTS]...")
@click.pass_obj
def profile(backend: str, **options: Any) -> None:
    """Make a task vocabulary from examples of the task.

    Counts in how many examples each token is written without being in the input, drops what the languages
    cannot hold and what nearly no example needs, and adds the tokens that every text is likely to need.

    \b
    Examples:
      vt-torch profile --model gemma-vt --data train.jsonl --language en --out math.vt.json
      vt-torch profile --model gemma-vt --data xsum.csv --preset summarization --rows 12000 --out news.vt.json
      vt-torch profile --model gemma-vt --data a.jsonl --held-out b.jsonl --plot a.png --out math.vt.json
      vt-torch profile --model gemma-vt --data train.jsonl --self --limit 500 --out math.vt.json
      vt-torch profile --model gemma-vt --merge a.counts b.counts --out math.vt.json
    """
    from vt_core.files.json_files import write_json
    from vt_core.profile import Profiler, make_layout
    from vt_core.profile.languages import code_points
    from vt_core.profile.plot import plot_coverage
    from vt_core.profile.tokenizer_source import find_tokenizer

    # What can be wrong with the options is found before anything slow begins.
    _check(options)
    stages = _stages(options)
    code_points(options["languages"])
    layout = make_layout(*(options[key] for key in ("preset", "input_field", "output_field", "template")))
    found = find_tokenizer(options["model"], options["revision"], options["vocab_rows"])
    profiler = Profiler(found.tokenizer_json, found.vocab_rows, found.name, layout, options["skip_bad"])
    out: Path = options["out"]
    with _checkpoints(out) as checkpoint:
        counts = _counts(profiler, options, checkpoint, lambda: _writer(backend, options))
        if options["save_counts"]:
            counts.save(options["save_counts"])
        name = options["name"] or out.name.removesuffix(".json").removesuffix(".vt")
        task = profiler.select(counts, stages, options["languages"], name)
        report: dict[str, Any] = {"task": task.name, "stages": dict(task.stages)}
        if options["held_out"]:
            rates = () if options["miss_rate"] is None else (options["miss_rate"],)
            task, report = profiler.held_out(task, counts, options["held_out"], stages, rates)
        if options["published"]:
            task.save_published(out, profiler.table)
        else:
            task.save(out)
    report = {**report, "examples": counts.examples, "bad_rows": counts.bad_rows, "out": str(out)}
    if options["report"]:
        write_json(options["report"], report)
    if options["plot"]:
        plot_coverage(report, options["plot"])
    click.echo(json.dumps(report, ensure_ascii=False) if options["as_json"] else _text(report))


def _check(options: dict[str, Any]) -> None:
    """Raises OptionError for options that do not go together or cannot be met, DataError for absent files."""
    from vt_core.profile.plot import figure_class

    if not options["data"] and not options["merge"]:
        raise OptionError("There is nothing to count; give --data FILE, or --merge COUNTS.")
    if options["more_counts"] and not options["merge"]:
        raise OptionError(f"{options['more_counts'][0]} stands alone; put --data or --merge before it.")
    if options["tolerance"] is not None and options["rows"] is not None:
        raise OptionError("--tolerance and --rows both say where to stop; give one of them.")
    if options["own"] and not options["data"]:
        raise OptionError("--self needs inputs to write for; give --data FILE.")
    for key, flag in (("self_weight", "--self-weight"), ("limit", "--limit")):
        if options[key] is not None and not options["own"]:
            raise OptionError(f"{flag} goes with --self.")
    for key, flag in (("plot", "--plot"), ("miss_rate", "--miss-rate")):
        if options[key] is not None and not options["held_out"]:
            raise OptionError(f"{flag} needs something to measure on; give --held-out FILE.")
    if options["plot"] is not None:
        figure_class()
    for path in options["held_out"]:
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
    for key in ("out", "report", "plot", "save_counts"):
        if options[key] is not None and not options[key].resolve().parent.is_dir():
            raise OptionError(f"{options[key]}: the directory does not exist.")


def _stages(options: dict[str, Any]) -> Stages:
    from vt_core.profile import Stages
    from vt_core.profile.selection import DEFAULT_TOLERANCE

    tolerance = DEFAULT_TOLERANCE if options["tolerance"] is None else options["tolerance"]
    return Stages(tolerance, options["rows"], options["prior"], not options["no_input_aware"])


MakeCheckpoint = Callable[..., "Checkpoint"]


@contextmanager
def _checkpoints(out: Path) -> Iterator[MakeCheckpoint]:
    """Makes checkpoints beside `out`, and removes them when the block ends well."""
    from vt_core.profile.checkpoint import Checkpoint, run_signature

    made: list[Checkpoint] = []

    def make(kind: str, files: list[Path], *what: object) -> Checkpoint:
        path = out.with_name(f".{out.name}.{kind}.checkpoint")
        made.append(Checkpoint(path, run_signature(files, kind, *what)))
        if made[-1].load() is not None:
            click.echo(f"Going on from {path}.", err=True)
        return made[-1]

    yield make
    for checkpoint in made:
        checkpoint.clear()


def _counts(
    profiler: Profiler,
    options: dict[str, Any],
    checkpoint: MakeCheckpoint,
    writer: Callable[[], Generate],
) -> Counts:
    """Counts of everything that was asked for, together."""
    from vt_core.profile import merge_all
    from vt_core.profile.counting import sensible_processes

    files = list(options["data"])
    settings = (profiler.digest, profiler.layout, profiler.skip_bad)
    parts = [profiler.load_counts(path) for path in (*options["merge"], *options["more_counts"])]
    if files and (not options["own"] or options["self_weight"]):
        with _progress() as on_rows:
            parts.append(
                profiler.count(
                    files,
                    processes=options["processes"] or sensible_processes(files),
                    checkpoint=checkpoint("count", files, *settings),
                    on_rows=on_rows,
                )
            )
    if options["own"]:
        asked = (options["max_tokens"], options["limit"])
        saved = checkpoint("self", files, *settings, options["model"], *asked)
        generate = writer()
        with _progress() as on_rows:
            own = profiler.count_own(
                files,
                generate,
                max_tokens=options["max_tokens"],
                limit=options["limit"],
                checkpoint=saved,
                on_rows=on_rows,
            )
        parts.append(own.times(options["self_weight"] or 1))
    return merge_all([profiler.empty(), *parts])


def _writer(backend: str, options: dict[str, Any]) -> Generate:
    """The model itself, with its whole head: what it would write without any task vocabulary."""
    from vt_core import load

    model = load(
        options["model"], backend=backend, head="full", device=options["device"], revision=options["revision"]
    )
    return lambda prompt, max_tokens: model.generate(prompt, max_tokens=max_tokens).token_ids


@contextmanager
def _progress() -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    # None: no bar where stderr is no terminal.
    with tqdm(unit=" rows", unit_scale=True, disable=None, desc="counted") as bar:
        yield bar.update


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['out']}: {report['examples']:,} examples, {report['bad_rows']:,} rows skipped"]
    lines += [f"  {stage:<12} {size:>9,}" for stage, size in report["stages"].items()]
    if "held_out" in report:
        summary = report["held_out"]
        lines.append(
            f"held out: {summary['tokens']:,} output tokens, {summary['copied_share']:.1%} of them in the "
            f"input, {1 - summary['token_coverage']:.2%} missing; {summary['example_coverage']:.1%} of "
            f"{summary['examples']:,} examples miss none"
        )
        lines += _curve_lines(report)
    return "\n".join(lines)


def _curve_lines(report: dict[str, Any]) -> list[str]:
    lines = ["       rows  missing tokens  examples whole"]
    marks = {report["profiled_rows"]: "  all profiled ids", report["knee"]: "  knee"}
    for point in report["curve"]:
        mark = marks.get(point["rows"], "")
        missing = 1 - point["token_coverage"]
        lines.append(f"  {point['rows']:>9,}  {missing:>14.2%}  {point['example_coverage']:>14.1%}{mark}")
    for rate, rows in report["rows_at_miss_rate"].items():
        lines.append(f"  {float(rate):.2%} missing: " + ("at no size" if rows is None else f"{rows:,} rows"))
    return lines
