"""``eval``: quality of the original head, static pruning, approximate and exact decoding, or of models."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
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
    from vt_core.files.model_dir import ModelDirectory
    from vt_core.measure.models import Candidate
    from vt_core.measure.quality.examples import Example
    from vt_core.measure.report import Report
    from vt_core.measure.variants import Variant

#: Name of --model where models are compared.
BASE = "base"


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
    "--compare",
    multiple=True,
    metavar="NAME=MODEL",
    help="Compare this model with --model, which is called base, instead of variants: quality and characters "
    "per second, with exact decoding. Repeatable.",
)
@click.option(
    "--draft-file",
    multiple=True,
    metavar="NAME=FILE",
    help="With --compare: an n-gram table from which the model of that name drafts. Repeatable.",
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
    """Measure how a reduced vocabulary affects the quality of answers, or compare models.

    The original head, static pruning, approximate and exact decoding answer the same rows, greedily. The
    report gives the vocabulary kept, the task's metrics with their 95 % intervals, and the paired differences
    to the original head. With --compare, several models answer them in turn.

    \b
    Examples:
      vt-torch eval --model qwen-vt --preset math --profile-data train.jsonl --data test.jsonl --out math
      vt-torch eval --preset qa --task qa.vt.json --data test.jsonl --variants original,exact --out qa
      vt-torch eval --preset code --data humaneval.jsonl --test-field test --limit 50 --out code
      vt-torch eval --preset sql --data test.jsonl --compare tuned=smollm2-sql --out sql
    """
    from vt_core.decode.backend import check_backend
    from vt_core.measure.machine import command_text
    from vt_core.measure.output import check_folder, folder_lock
    from vt_core.measure.quality.examples import TestFields, read_examples, task_layout
    from vt_core.measure.report import markdown

    if options["test_field"] is not None and options["preset"] != "code":
        raise OptionError("--test-field goes with --preset code.")
    layout = task_layout(*(options[key] for key in ("preset", "input_field", "output_field", "template")))
    fields = None
    if options["test_field"] is not None:
        fields = TestFields(options["test_field"], options["entry_field"])
    check_folder(options["out"])
    run = _compare_models if options["compare"] else _compare_variants
    options["variants"] = _check(options)
    check_backend(backend)
    examples = read_examples(options["data"], layout, limit=options["limit"], test_fields=fields)
    asked = {
        "backend": backend,
        "layout": layout,
        "command": command_text(f"vt-{backend}", sys.argv[1:]),
        **{name: options[name] for name in ("preset", "data", "out", "seed", "minimum")},
        **{name: options[name] for name in ("max_tokens", "stop", "raw", "system", "tokenize")},
        **{name: options[name] for name in ("device", "dtype", "quantize")},
    }
    with folder_lock(options["out"]):
        results, report = run(options, asked, examples)
    text = markdown(report)
    click.echo(json.dumps(results, ensure_ascii=False) if options["as_json"] else text)


def _check(options: dict[str, Any]) -> tuple[Variant, ...]:
    """The variants; none where models are compared. Refuses what cannot go together or be read."""
    from vt_core.measure.variants import parse_eval_variants
    from vt_core.vocab.collection import check_task

    if options["compare"]:
        for name in ("variants", "task", "profile_data"):
            if options[name]:
                flag = name.replace("_", "-")
                raise OptionError(
                    f"--{flag} is for the variants of one model; leave out --compare or --{flag}"
                )
        return ()
    if options["draft_file"]:
        raise OptionError("--draft-file goes with --compare; bench measures drafts of one model.")
    for file in options["task"]:
        check_task(file)
    return parse_eval_variants(options["variants"], bool(options["profile_data"]))


def _open(model: str | None, revision: str | None = None) -> ModelDirectory:
    from converters.cache import open_model

    return open_model(model, revision=revision, progress=sys.stderr.isatty())


def _compare_variants(
    options: dict[str, Any], asked: dict[str, Any], examples: list[Example]
) -> tuple[dict[str, Any], Report]:
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from vt_core.measure.eval_report import eval_report
    from vt_core.measure.evaluation import PRUNED_TOKENIZER, Evaluation, evaluate
    from vt_core.measure.output import write_eval

    plan = Evaluation(
        directory=_open(options["model"], options["revision"]),
        tasks=options["task"],
        **{name: options[name] for name in ("variants", "profile_data")},
        **asked,
    )
    # disable=None: no bar where stderr is not a terminal.
    bar = tqdm(total=len(plan.variants) * len(examples), unit=" answers", disable=None)
    with TemporaryDirectory(prefix="vt-eval-") as scratch, bar:
        results = evaluate(plan, examples, Path(scratch), bar.update)
    more = {} if plan.pruned is None else {PRUNED_TOKENIZER: plan.pruned.tokenizer_json}
    write_eval(results, options["out"], more)
    return results, eval_report([results])


def _compare_models(
    options: dict[str, Any], asked: dict[str, Any], examples: list[Example]
) -> tuple[dict[str, Any], Report]:
    from tqdm import tqdm

    from vt_core.measure.models import Comparison, compare_models
    from vt_core.measure.models_report import models_report
    from vt_core.measure.output import write_models

    plan = Comparison(candidates=_candidates(options), **asked)
    with tqdm(total=len(plan.candidates) * len(examples), unit=" answers", disable=None) as bar:
        results = compare_models(plan, examples, bar.update)
    write_models(results, options["out"])
    return results, models_report(results)


def _candidates(options: dict[str, Any]) -> list[Candidate]:
    """The models of --model and --compare, with their n-gram tables."""
    from vt_core.measure.models import Candidate
    from vt_core.vocab.ngrams import NgramTable

    others, drafts = _named(options["compare"], "compare"), _named(options["draft_file"], "draft-file")
    if BASE in others:
        raise OptionError(
            f"--compare {BASE}={others[BASE]}: {BASE} is the name of --model; give another name."
        )
    if unknown := sorted(drafts.keys() - {BASE, *others}):
        raise OptionError(
            f"--draft-file names {unknown[0]!r}, which is not a model; choose from "
            f"{', '.join((BASE, *others))}."
        )
    found = [Candidate(BASE, _open(options["model"], options["revision"]))]
    found += [Candidate(name, _open(model)) for name, model in others.items()]
    candidates = []
    for each in found:
        if each.name in drafts:
            file = Path(drafts[each.name])
            NgramTable.open(file).check(each.directory.manifest.tokenizer_digest, each.name)
            each = replace(each, draft_file=file)
        candidates.append(each)
    return candidates


def _named(values: tuple[str, ...], option: str) -> dict[str, str]:
    """The values of a repeatable option NAME=VALUE."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise OptionError(f"--{option} is {text!r}; give NAME=VALUE.")
        if name in found:
            raise OptionError(f"--{option} gives {name!r} twice.")
        found[name] = value
    return found
