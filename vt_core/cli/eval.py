"""``eval``: quality of the original head, static pruning, approximate and exact decoding."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import (
    FILE,
    data_option,
    device_option,
    dtype_option,
    input_field_option,
    json_option,
    max_tokens_option,
    model_option,
    output_field_option,
    preset_option,
    quantize_option,
    raw_option,
    revision_option,
    stop_option,
    system_option,
    task_option,
    template_option,
)
from vt_core.errors import OptionError

if TYPE_CHECKING:
    from vt_core.model import Model


@click.command("eval")
@model_option()
@revision_option
@preset_option(required=True)
@data_option("Rows to answer", required=True)
@task_option
@click.option(
    "--profile-data",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Corpus that static pruning is cut to, and, without --task, the task is profiled from; repeatable.",
)
@input_field_option
@output_field_option
@template_option
@click.option(
    "--test-field",
    metavar="NAME",
    help="With --preset code: field of the unit tests. What the model writes is then run, in a sandbox.",
)
@click.option(
    "--entry-field",
    metavar="NAME",
    default="entry_point",
    show_default=True,
    help="With --test-field: field that names the function which the tests check.",
)
@click.option("--limit", type=click.IntRange(1), help="Rows to answer. Default: all.")
@max_tokens_option()
@stop_option
@system_option
@raw_option
@click.option(
    "--variants",
    metavar="LIST",
    help="Of original, pruned, approximate, exact, static-only, dynamic-only. Default: the first four; "
    "pruned only with --profile-data.",
)
@click.option(
    "--tokenize", metavar="NAME", help="sacreBLEU's tokenizer. Default: zh for Chinese references, else 13a."
)
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@click.option(
    "--minimum",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Examples below which no interval is given.",
)
@device_option
@dtype_option()
@quantize_option
@json_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for predictions.jsonl, results.json and report.md. The same command goes on there.",
)
@click.pass_obj
def evaluate(backend: str, **options: Any) -> None:
    """Measure what a reduced vocabulary does to the quality of answers.

    The original head, static pruning, approximate and exact decoding answer the same rows, greedily. The
    report gives the vocabulary kept, the task's metrics with their 95 % intervals, and the paired differences
    to the original head.

    \b
    Examples:
      vt-torch eval --model qwen-vt --preset math --profile-data train.jsonl --data test.jsonl --out math
      vt-torch eval --preset qa --task qa.vt.json --data test.jsonl --variants original,exact --out qa
      vt-torch eval --preset code --data humaneval.jsonl --test-field test --limit 50 --out code
    """
    from tqdm import tqdm

    from vt_core.measure.bench.machine import command_text
    from vt_core.measure.quality.examples import TestFields, read_examples, task_layout
    from vt_core.measure.quality.report import report, write
    from vt_core.measure.quality.run import Plan
    from vt_core.measure.quality.run import evaluate as run
    from vt_core.measure.quality.variants import parse_variants

    if options["test_field"] is not None and options["preset"] != "code":
        raise OptionError("--test-field goes with --preset code.")
    layout = task_layout(*(options[key] for key in ("preset", "input_field", "output_field", "template")))
    variants = parse_variants(options["variants"], bool(options["profile_data"]))
    fields = None
    if options["test_field"] is not None:
        fields = TestFields(options["test_field"], options["entry_field"])
    examples = read_examples(options["data"], layout, limit=options["limit"], test_fields=fields)
    generation = {"max_tokens": options["max_tokens"], "stop": list(options["stop"]), "raw": options["raw"]}
    if options["system"] is not None:
        generation["system"] = options["system"]
    plan = Plan(
        preset=options["preset"],
        layout=layout,
        data=options["data"],
        variants=variants,
        out=options["out"],
        tasks=options["task"],
        profile_data=options["profile_data"],
        generation=generation,
        tokenize=options["tokenize"],
        seed=options["seed"],
        minimum=options["minimum"],
        command=command_text(f"vt-{backend}", sys.argv[1:]),
    )

    def load_model(full: bool) -> Model:
        from vt_core import load

        return load(
            options["model"],
            backend=backend,
            revision=options["revision"],
            head="full" if full else "prealloc",
            device=options["device"],
            dtype=options["dtype"],
            quantize=options["quantize"],
            progress=sys.stderr.isatty(),
        )

    # None: no bar where stderr is no terminal.
    with tqdm(total=len(variants) * len(examples), unit=" answers", disable=None) as bar:
        results = run(plan, examples, load_model, bar.update)
    write(results, options["out"])
    click.echo(json.dumps(results, ensure_ascii=False) if options["as_json"] else report([results]))
