"""``enrich``: frequent n-grams of a task's outputs become tokens of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli import streams
from vt_core.cli.options import (
    FILE,
    data_option,
    input_field_option,
    json_option,
    model_option,
    output_field_option,
    preset_option,
    revision_option,
    row_format,
    template_option,
)
from vt_core.errors import OptionError

if TYPE_CHECKING:
    from vt_core.enrich import MergeableTokenizer, Outputs, Selection
    from vt_core.profile import RowFormat

#: Symbols of 16 bits are left for the tokens of the corpus.
MOST_ROWS = 20_000


@click.command()
@model_option()
@revision_option
@data_option("Corpus", required=True)
@preset_option()
@input_field_option
@output_field_option
@template_option
@click.option("--rows", type=int, default=300, show_default=True, help="Merged tokens to add.")
@click.option(
    "--n-max",
    type=click.IntRange(2, 4),
    default=4,
    show_default=True,
    help="Most tokens that become one at a time; a merged token can become part of another.",
)
@click.option(
    "--max-collision",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help='Leave out an n-gram such as " in the" if a longer token, such as " therapy", follows more than '
    'this share of all " in".',
)
@click.option("--skip-bad", is_flag=True, help="Skip rows that cannot be used, and report how many.")
@click.option("--report", type=FILE, help="Write the report as JSON, with all merged tokens.")
@click.option("--plot", type=FILE, help="Plot tokens per text against --rows as a PNG file.")
@json_option
@click.option("--out", required=True, type=FILE, metavar="DIR", help="The enriched model, a new directory.")
def enrich(**options: Any) -> None:
    """Add frequent n-grams of a task's outputs to a model's vocabulary.

    Texts become shorter in tokens, and so faster to write, once the model has learned to use the merged
    tokens: run finetune next. Prompts are encoded as before. OUT is a Hugging Face directory with a
    merges.json; transformers, mlx-lm and all commands of vt read it.

    \b
    Examples:
      vt-torch enrich --data train.jsonl --rows 300 --out smollm2-sql
      vt-torch enrich --model gemma-3-270m.gguf --data train.jsonl --plot curve.png --out gemma-intents
    """
    from converters.output import refuse_existing
    from converters.plain import plain_model
    from vt_core.enrich import MergeableTokenizer, make_report

    out: Path = options["out"].expanduser().resolve()
    refuse_existing(out, force=False)
    _check(options)
    rows = row_format(options)
    model = plain_model(options["model"], revision=options["revision"])
    model.check_growth()
    tokenizer = MergeableTokenizer(model.path / "tokenizer.json")
    outputs = _read(options, tokenizer, rows)
    selection = _select(options, tokenizer, outputs)
    report = make_report(outputs, selection, tokenizer, options["rows"]) | {"out": str(options["out"])}
    new = {ngram.id: ngram.parts for ngram in selection.ngrams}
    model.write_with_rows(out, new, lambda directory: tokenizer.write(directory, outputs.samples))
    _give_report(options, report)


def _check(options: dict[str, Any]) -> None:
    """Refuse options that cannot be followed, before any work."""
    from vt_core.profile.plot import figure_class

    if not 1 <= options["rows"] <= MOST_ROWS:
        raise OptionError(f"--rows is {options['rows']}; give a number from 1 to {MOST_ROWS}.")
    if options["plot"] is not None:
        figure_class()
    for key in ("report", "plot"):
        if options[key] is not None and not options[key].resolve().parent.is_dir():
            raise OptionError(f"{options[key]}: the directory does not exist.")


def _read(options: dict[str, Any], tokenizer: MergeableTokenizer, rows: RowFormat) -> Outputs:
    from vt_core.enrich import read_outputs

    with streams.progress("encoded", " rows") as on_rows:
        return read_outputs(
            options["data"],
            tokenizer.library,
            rows,
            merges=tokenizer.known,
            skip_bad=options["skip_bad"],
            on_rows=on_rows,
        )


def _select(options: dict[str, Any], tokenizer: MergeableTokenizer, outputs: Outputs) -> Selection:
    """Choose the n-grams and add them to the tokenizer. Raises OptionError where there are none."""
    from vt_core.enrich import select_ngrams
    from vt_core.enrich.report import SIZES

    with streams.progress("merged", " tokens", options["rows"]) as on_ngram:
        selection = select_ngrams(
            outputs.ids,
            options["rows"],
            **tokenizer.for_selection(),
            n_max=options["n_max"],
            max_collision=options["max_collision"],
            sizes=SIZES,
            on_ngram=lambda: on_ngram(1),
        )
    if not selection.ngrams:
        raise OptionError(
            f"No n-gram of the outputs can become a token ({selection.collided} collide with longer tokens); "
            "give more data, or a higher --max-collision."
        )
    return selection


def _give_report(options: dict[str, Any], report: dict[str, Any]) -> None:
    from vt_core.enrich import plot_curve, report_text
    from vt_core.files.json_files import write_json

    if options["report"] is not None:
        write_json(options["report"], report)
    if options["plot"] is not None:
        plot_curve(report, options["plot"])
    if options["as_json"]:
        streams.write_json(report)
    else:
        click.echo(f"{report_text(report)}\n{options['out']}: written; run finetune on it next")
