"""``eval``: quality of the original head, static pruning, approximate and exact decoding."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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
    help="Corpus for static pruning; without --task the task vocabulary is profiled from it. Repeatable.",
)
@input_field_option
@output_field_option
@template_option
@click.option(
    "--test-field",
    metavar="NAME",
    help="With --preset code: field of the unit tests. The model's code is then run in a sandbox.",
)
@click.option(
    "--entry-field",
    metavar="NAME",
    default="entry_point",
    show_default=True,
    help="With --test-field: field with the name of the function that the tests call.",
)
@click.option("--limit", type=click.IntRange(1), help="Number of rows to answer. Default: all.")
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
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--minimum",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Number of rows below which the report warns.",
)
@device_option
@dtype_option()
@quantize_option
@json_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for predictions.jsonl, results.json and report.md. The same command resumes there.",
)
@click.pass_obj
def evaluate(backend: str, **options: Any) -> None:
    """Measure how a reduced vocabulary affects the quality of answers.

    The original head, static pruning, approximate and exact decoding answer the same rows, greedily. The
    report gives the vocabulary kept, the task's metrics with their 95 % intervals, and the paired differences
    to the original head.

    \b
    Examples:
      vt-torch eval --model qwen-vt --preset math --profile-data train.jsonl --data test.jsonl --out math
      vt-torch eval --preset qa --task qa.vt.json --data test.jsonl --variants original,exact --out qa
      vt-torch eval --preset code --data humaneval.jsonl --test-field test --limit 50 --out code
    """
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from converters.cache import resolve
    from vt_core.decode.backend import check_backend
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.measure.eval_report import eval_report
    from vt_core.measure.evaluation import PRUNED_TOKENIZER, Evaluation
    from vt_core.measure.evaluation import evaluate as run
    from vt_core.measure.machine import command_text
    from vt_core.measure.output import check_folder, folder_lock, write_eval
    from vt_core.measure.quality.examples import TestFields, read_examples, task_layout
    from vt_core.measure.report import markdown
    from vt_core.measure.variants import parse_eval_variants
    from vt_core.vocab.task import read_task

    if options["test_field"] is not None and options["preset"] != "code":
        raise OptionError("--test-field goes with --preset code.")
    layout = task_layout(*(options[key] for key in ("preset", "input_field", "output_field", "template")))
    variants = parse_eval_variants(options["variants"], bool(options["profile_data"]))
    fields = None
    if options["test_field"] is not None:
        fields = TestFields(options["test_field"], options["entry_field"])
    check_folder(options["out"])
    for file in options["task"]:
        read_task(file)  # a damaged file is refused before a model is downloaded
    check_backend(backend)
    examples = read_examples(options["data"], layout, limit=options["limit"], test_fields=fields)
    progress = sys.stderr.isatty()
    resolved = resolve(options["model"], revision=options["revision"], progress=progress)
    plan = Evaluation(
        backend=backend,
        directory=ModelDirectory.open(resolved),
        layout=layout,
        variants=variants,
        tasks=options["task"],
        command=command_text(f"vt-{backend}", sys.argv[1:]),
        **{name: options[name] for name in ("preset", "data", "profile_data", "out", "seed", "minimum")},
        **{name: options[name] for name in ("max_tokens", "stop", "raw", "system", "tokenize")},
        **{name: options[name] for name in ("device", "dtype", "quantize")},
    )
    # disable=None: no bar where stderr is not a terminal.
    bar = tqdm(total=len(variants) * len(examples), unit=" answers", disable=None)
    with folder_lock(options["out"]), TemporaryDirectory(prefix="vt-eval-") as scratch, bar:
        results = run(plan, examples, Path(scratch), bar.update)
        more = {} if plan.pruned is None else {PRUNED_TOKENIZER: plan.pruned.tokenizer_json}
        write_eval(results, options["out"], more)
    text = markdown(eval_report([results]))
    click.echo(json.dumps(results, ensure_ascii=False) if options["as_json"] else text)
