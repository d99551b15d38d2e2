"""``profile``: make a task vocabulary from a corpus."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli import streams
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
    row_format,
    template_option,
)
from vt_core.errors import DataError, OptionError

if TYPE_CHECKING:
    from vt_core.profile import Counts, Profiler, Stages
    from vt_core.vocab.ngrams import NgramTable
    from vt_core.vocab.task import TaskVocabulary

#: Tokens of the longest n-grams: by default, and at most (a context of `MAX_CONTEXT` tokens and the next).
DEFAULT_NGRAM = 5
MAX_NGRAM = 9


@click.command()
@model_option(", or a tokenizer.json or a directory that holds one")
@revision_option
@click.option(
    "--vocab-rows",
    type=click.IntRange(1),
    help="Rows of the model's table, if only its tokenizer is given. Default: the size of the tokenizer.",
)
@data_option("Corpus", type=click.Path())
@preset_option()
@input_field_option
@output_field_option
@template_option
@click.option(
    "--language",
    "languages",
    multiple=True,
    metavar="NAME",
    help="Keep only tokens that can occur in this language, or in code, math or emoji; repeatable. "
    "Default: no filter.",
)
@click.option("--tolerance", type=float, help="Share of the examples that may lose a token.  [default: 0.01]")
@click.option("--rows", type=int, help="Size of the vocabulary, instead of a tolerance.")
@click.option(
    "--prior", type=int, default=8192, show_default=True, help="Ordinary ids of the rank prior; 0: none."
)
@click.option("--no-input-aware", is_flag=True, help="Also count output tokens that occur in the input.")
@click.option(
    "--held-out",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Measure the coverage of this file's outputs; repeatable.",
)
@click.option("--report", type=FILE, help="Write the coverage report as JSON.")
@click.option("--plot", type=FILE, help="Plot coverage against size as a PNG file.")
@click.option(
    "--miss-rate",
    type=click.FloatRange(0, 1),
    help="Report the size at which this share of tokens is missing.",
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
    help="With --self: count the files' outputs too, and each text of the model this many times.",
)
@max_tokens_option(text="With --self: most tokens to generate per row.")
@click.option("--limit", type=click.IntRange(1), help="With --self: rows to use.")
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
    "--processes",
    type=click.IntRange(1),
    help="Processes that tokenize. Default: one for small files, else one per core.",
)
@click.option(
    "--engine",
    type=click.Choice(("local", "spark", "ray")),
    default="local",
    show_default=True,
    help="What counts: processes of this machine, or a cluster, which also reads URLs.",
)
@click.option("--master", metavar="URL", help="With --engine spark: the cluster, such as local[2].")
@click.option(
    "--shard",
    metavar="I/N",
    help="Count only the I-th of N equal parts of the files into --save-counts; --merge the parts later.",
)
@click.option(
    "--ngrams",
    type=click.IntRange(0, MAX_NGRAM),
    metavar="N",
    help="Tokens of the longest n-grams of the table, NAME.ngrams, that drafts tokens; 0: no table.  "
    f"[default: {DEFAULT_NGRAM}]",
)
@click.option(
    "--ngram-count",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Times that an n-gram of the table must occur.",
)
@click.option("--skip-bad", is_flag=True, help="Skip rows that cannot be used, and report how many.")
@click.option("--name", help="Name of the task. Default: from --out.")
@json_option
@click.option("--published", is_flag=True, help="Write {token: id}, the format of the published code.")
@click.option("--out", type=FILE, help="The task vocabulary, NAME.vt.json.")
@click.argument("more_counts", nargs=-1, type=FILE, metavar="[COUNTS]...")
@click.pass_obj
def profile(backend: str, **options: Any) -> None:
    """Make a task vocabulary from examples of the task.

    Counts in how many examples each token occurs in the output but not in the input. Drops tokens that the
    languages cannot contain, and tokens that almost no example needs. Adds the most common tokens of the
    tokenizer. Also writes NAME.ngrams beside it: which tokens follow each other in the outputs, from which
    generation drafts. An interrupted run resumes when the same command is run again.

    \b
    Examples:
      vt-torch profile --model gemma-vt --data train.jsonl --language en --out math.vt.json
      vt-torch profile --model gemma-vt --data xsum.csv --preset summarization --rows 12000 --out news.vt.json
      vt-torch profile --model gemma-vt --data a.jsonl --held-out b.jsonl --plot a.png --out math.vt.json
      vt-torch profile --model gemma-vt --data train.jsonl --self --limit 500 --out math.vt.json
      vt-torch profile --model gemma-vt --merge a.counts b.counts --out math.vt.json
      vt-torch profile --model gemma-vt --data big.jsonl --shard 1/8 --save-counts 1.counts
      vt-torch profile --model gemma-vt --data s3a://bucket/big.parquet --engine spark --out math.vt.json
    """
    from vt_core.cli.counting import checkpoints, count
    from vt_core.cli.tokenizer_source import find_tokenizer
    from vt_core.files.json_files import write_json
    from vt_core.profile import Profiler
    from vt_core.profile.languages import code_points
    from vt_core.profile.plot import plot_coverage
    from vt_core.profile.shards import missing_shards

    # Check all options before anything slow starts.
    _check(options)
    ngrams = _ngrams(options)
    stages = _stages(options)
    code_points(options["languages"])
    rows = row_format(options)
    found = find_tokenizer(options["model"], options["revision"], options["vocab_rows"])
    profiler = Profiler(found.tokenizer_json, found.vocab_rows, found.name, rows, options["skip_bad"], ngrams)
    out: Path = options["out"] or options["save_counts"]
    with checkpoints(out) as checkpoint:
        counts = count(profiler, options, checkpoint, backend)
        if options["save_counts"]:
            counts.save(options["save_counts"])
        if options["shard"]:
            _print({"task": None, "stages": {}, **_counted(counts, out)}, options)
            return
        if missing := list(map(str, islice(missing_shards(counts.shards), 10))):
            missing[9:] = ["…"] * len(missing[9:])
            click.echo(f"not merged: shards {', '.join(missing)}", err=True)
        name = options["name"] or out.name.removesuffix(".json").removesuffix(".vt")
        task = profiler.select(counts, stages, options["languages"], name)
        report: dict[str, Any] = {"task": task.name, "stages": dict(task.stages)}
        if options["held_out"]:
            rates = () if options["miss_rate"] is None else (options["miss_rate"],)
            task, report = profiler.held_out(task, counts, options["held_out"], stages, rates)
        table = profiler.ngram_table(counts, name, options["ngram_count"])
        _save(task, table, profiler, options)
        report = {**report, **_counted(counts, out), "ngrams": _ngrams_report(table, out)}
        if options["report"]:
            write_json(options["report"], report)
        if options["plot"]:
            plot_coverage(report, options["plot"])
    _print(report, options)


def _check(options: dict[str, Any]) -> None:
    """Raise OptionError for options that contradict each other, and DataError for missing files."""
    from vt_core.profile.plot import figure_class

    if not options["data"] and not options["merge"]:
        raise OptionError("there is nothing to count; give --data FILE or --merge COUNTS.")
    if options["more_counts"] and not options["merge"]:
        raise OptionError(
            f"{options['more_counts'][0]} is not an option's value; put --data or --merge before it."
        )
    _check_engine(options)
    if options["tolerance"] is not None and options["rows"] is not None:
        raise OptionError("--tolerance and --rows exclude each other; give one of them.")
    if options["own"] and not options["data"]:
        raise OptionError("--self needs inputs; give --data FILE.")
    for key, flag in (("self_weight", "--self-weight"), ("limit", "--limit")):
        if options[key] is not None and not options["own"]:
            raise OptionError(f"{flag} needs --self.")
    for key, flag in (("plot", "--plot"), ("miss_rate", "--miss-rate")):
        if options[key] is not None and not options["held_out"]:
            raise OptionError(f"{flag} needs held-out data; give --held-out FILE.")
    if options["plot"] is not None:
        figure_class()
    for path in options["held_out"]:
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
    for key in ("out", "report", "plot", "save_counts"):
        if options[key] is not None and not options[key].resolve().parent.is_dir():
            raise OptionError(f"{options[key]}: the directory does not exist.")


def _check_engine(options: dict[str, Any]) -> None:
    """Raise OptionError for options that the engine or a shard does not allow, and for a missing --out."""
    from vt_core.profile.shards import parse_shard

    engine = options["engine"]
    if engine != "local":
        for key, flag in (("own", "--self"), ("shard", "--shard"), ("processes", "--processes")):
            if options[key]:
                raise OptionError(f"{flag} is for this machine; leave out --engine {engine}.")
        if not options["data"]:
            raise OptionError(f"--engine {engine} has nothing to count; give --data.")
    if options["master"] is not None and engine != "spark":
        raise OptionError("--master needs --engine spark.")
    if options["shard"] is None:
        if options["out"] is None:
            raise OptionError("there is no output; give --out FILE.")
        return
    parse_shard(options["shard"])
    if not options["data"] or options["save_counts"] is None:
        raise OptionError("--shard counts a part of --data FILE into --save-counts FILE; give both.")
    for key in ("out", "own", "merge", "held_out", "report"):
        if options[key]:
            flag = "--self" if key == "own" else f"--{key.replace('_', '-')}"
            raise OptionError(f"{flag} needs all counts; give it when you --merge the shards.")


def _stages(options: dict[str, Any]) -> Stages:
    from vt_core.profile import Stages
    from vt_core.profile.selection import DEFAULT_TOLERANCE

    tolerance = DEFAULT_TOLERANCE if options["tolerance"] is None else options["tolerance"]
    return Stages(tolerance, options["rows"], options["prior"], not options["no_input_aware"])


def _ngrams(options: dict[str, Any]) -> int:
    """Tokens of the longest n-grams to count. Raises OptionError."""
    out, asked = options["out"], options["ngrams"]
    beside_a_file = out is None or not out.exists() or out.is_file()
    if asked == 1:
        raise OptionError("--ngrams 1 leaves no context; give 0, or 2 or more.")
    if asked and options["published"]:
        raise OptionError("--published has no n-gram table; leave out --ngrams.")
    if asked and not beside_a_file:
        raise OptionError(f"--ngrams writes a file beside --out, but {out} is not a regular file.")
    if asked is None:
        return DEFAULT_NGRAM if beside_a_file and not options["published"] else 0
    return asked


def _save(
    task: TaskVocabulary, table: NgramTable | None, profiler: Profiler, options: dict[str, Any]
) -> None:
    """Write the task vocabulary and its table, and remove the table of an earlier vocabulary."""
    from vt_core.files.json_files import write_together
    from vt_core.vocab.ngrams import table_path

    out: Path = options["out"]
    if options["published"]:
        task.save_published(out, profiler.table)
    elif table is None:
        task.save(out)
    else:
        write_together({table_path(out): table.content(), out: task.content()})
    if table is None and table_path(out).is_file():
        table_path(out).unlink()
        click.echo(f"removed {table_path(out)}, the n-gram table of an earlier profile", err=True)


def _ngrams_report(table: NgramTable | None, out: Path) -> dict[str, Any] | None:
    from vt_core.vocab.ngrams import ENTRY_BYTES, table_path

    if table is None:
        return None
    return {
        "out": str(table_path(out)),
        "entries": list(table.entries),
        "bytes": ENTRY_BYTES * sum(table.entries),
        "min_count": table.min_count,
    }


def _counted(counts: Counts, out: Path) -> dict[str, Any]:
    return {"examples": counts.examples, "bad_rows": counts.bad_rows, "out": str(out)}


def _print(report: dict[str, Any], options: dict[str, Any]) -> None:
    if options["as_json"]:
        streams.write_json(report)
    else:
        click.echo(_text(report))


def _text(report: dict[str, Any]) -> str:
    from vt_core.cli.inspect import size_text

    lines = [f"{report['out']}: {report['examples']:,} examples, {report['bad_rows']:,} rows skipped"]
    lines += [f"  {stage:<12} {size:>9,}" for stage, size in report["stages"].items()]
    if ngrams := report.get("ngrams"):
        entries = sum(ngrams["entries"])
        lines.append(f"  {'n-grams':<12} {entries:>9,}  {size_text(ngrams['bytes'])}, {ngrams['out']}")
    if "held_out" in report:
        summary = report["held_out"]
        lines.append(
            f"held out: {summary['tokens']:,} output tokens, {summary['copied_share']:.1%} of them in the "
            f"input, {1 - summary['token_coverage']:.2%} missing; {summary['example_coverage']:.1%} of "
            f"{summary['examples']:,} examples are covered completely"
        )
        lines += _curve_lines(report)
    return "\n".join(lines)


def _curve_lines(report: dict[str, Any]) -> list[str]:
    lines = ["       rows  missing tokens  examples covered"]
    marks = {report["profiled_rows"]: "  all profiled ids", report["knee"]: "  knee"}
    for point in report["curve"]:
        mark = marks.get(point["rows"], "")
        missing = 1 - point["token_coverage"]
        lines.append(f"  {point['rows']:>9,}  {missing:>14.2%}  {point['example_coverage']:>16.1%}{mark}")
    for rate, rows in report["rows_at_miss_rate"].items():
        lines.append(f"  {float(rate):.2%} missing: " + ("at no size" if rows is None else f"{rows:,} rows"))
    return lines
