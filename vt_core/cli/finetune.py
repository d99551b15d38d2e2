"""``finetune``: train a model on a task's examples."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from safetensors import SafetensorError

from vt_core.cli import streams
from vt_core.cli.options import (
    FILE,
    data_option,
    device_option,
    dtype_option,
    input_field_option,
    json_option,
    model_option,
    output_field_option,
    preset_option,
    raw_option,
    revision_option,
    row_format,
    system_option,
    template_option,
)
from vt_core.errors import BackendError, OptionError, OutputError, shorten

if TYPE_CHECKING:
    from converters.plain import PlainModel
    from vt_core.enrich.training import FinetuneBackend, Settings, Trained, TrainingPlan
    from vt_core.profile import RowFormat

WHOLE = click.IntRange(1)
#: Free bytes below which a failed write is blamed on the disk. Frameworks do not always say why one failed.
SMALL_DISK = 64 << 20


@click.command()
@model_option()
@revision_option
@data_option("Examples to learn from", required=True)
@preset_option()
@input_field_option
@output_field_option
@template_option
@raw_option
@system_option
@click.option(
    "--eval-data", multiple=True, type=FILE, metavar="FILE", help="Examples to evaluate with; repeatable."
)
@click.option(
    "--eval-share",
    type=click.FloatRange(0, 0.5),
    help="Share of the examples of --data to evaluate with, without --eval-data; 0: none.  [default: 0.05]",
)
@click.option("--epochs", type=WHOLE, default=3, show_default=True, help="Times to read all examples.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=2e-4,
    show_default=True,
    help="Learning rate at the start; it falls to 0.",
)
@click.option(
    "--rows-learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate of the rows of merged tokens at the start.  [default: 10 times --learning-rate, at "
    "most a tenth of the rows' root mean square]",
)
@click.option("--rank", type=WHOLE, default=16, show_default=True, help="Rank of the low-rank layers.")
@click.option("--alpha", type=WHOLE, help="Low-rank layers are scaled by alpha / rank.  [default: the rank]")
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Dropout before the low-rank layers.",
)
@click.option("--full", is_flag=True, help="Train all weights instead of low-rank layers and new rows.")
@click.option("--batch-size", type=WHOLE, default=16, show_default=True, help="Examples between two updates.")
@click.option(
    "--micro-batch", type=WHOLE, default=4, show_default=True, help="Examples that are computed at once."
)
@click.option(
    "--evaluations",
    type=WHOLE,
    default=1,
    show_default=True,
    help="Evaluations and checkpoints of an epoch.",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Stop after so many evaluations without a smaller loss; 0: never.",
)
@click.option(
    "--max-length", type=WHOLE, default=1024, show_default=True, help="Leave longer examples out, in tokens."
)
@click.option("--limit", type=WHOLE, help="Use so many examples of --data, chosen at random.")
@click.option("--seed", default=0, show_default=True, help="Order of the examples and start of the layers.")
@device_option
@dtype_option(
    "Float type of the weights while training; what is trained stays in float32. Default: bfloat16 where the "
    "device multiplies it well and --full is not given, else float32."
)
@json_option
@click.option("--out", required=True, type=FILE, metavar="DIR", help="The trained model, a new directory.")
@click.pass_obj
def finetune(backend: str, **options: Any) -> None:
    """Train a model to write a task's outputs.

    Trains low-rank layers (LoRA) on all linear layers and, of a model from enrich, the rows of the merged
    tokens, which outputs are rewritten with. OUT is a Hugging Face directory with the trained weights, beside
    them the adapter and the curve of the loss. An interrupted run resumes from its last checkpoint when the
    same command is run again.

    \b
    Examples:
      vt-torch finetune --data train.jsonl --out smollm2-tuned
      vt-torch enrich --data train.jsonl --out smollm2-sql
      vt-torch finetune --model smollm2-sql --data train.jsonl --out smollm2-sql-tuned
    """
    from converters.output import refuse_existing
    from converters.plain import plain_model

    started = time.monotonic()
    out: Path = options["out"].expanduser().resolve()
    refuse_existing(out, force=False)
    _check_evaluation(options)
    settings, rows = _settings(options), row_format(options)
    trainer = _backend(backend)
    model = plain_model(options["model"], revision=options["revision"])
    plan, counts = _plan(model, options, settings, rows, out.parent / f".{out.name}.training")
    if counts["rare_merged_tokens"]:
        click.echo(_rare_text(len(plan.new_ids), counts["rare_merged_tokens"]), err=True)
    _prepare(plan, model, options)
    trained = _train(trainer, plan)
    report = counts | _training_report(plan, trained, time.monotonic() - started)
    model.write_trained(out, trained, plan.new_ids, lambda new: _write_more(new, trained, report))
    shutil.rmtree(plan.work, ignore_errors=True)
    report["out"] = str(options["out"])
    if options["as_json"]:
        streams.write_json(report)
    else:
        click.echo(_report_text(report))


def _check_evaluation(options: dict[str, Any]) -> None:
    if options["eval_data"] and options["eval_share"] is not None:
        raise OptionError(
            "--eval-share takes examples from --data, and --eval-data gives others; leave out one."
        )


def _check_rows_rate(options: dict[str, Any], model: str, new_ids: tuple[int, ...]) -> None:
    if options["rows_learning_rate"] is not None and (options["full"] or not new_ids):
        why = "--full gives all weights one rate" if options["full"] else f"{model} has no merged tokens"
        raise OptionError(f"--rows-learning-rate has nothing to set: {why}; leave it out.")


def _train(trainer: FinetuneBackend, plan: TrainingPlan) -> Trained:
    """Train with a progress bar, the points of the loss curve above it."""
    total = plan.settings.epochs * plan.settings.steps(len(plan.train))
    with _one_sentence(plan.work), streams.progress("trained", " updates", total) as advance:
        done = 0

        def on_step(step: int) -> None:
            nonlocal done
            advance(step - done)
            done = step

        return trainer.finetune(plan, on_step, lambda point: click.echo(_point_text(point), err=True))


@contextmanager
def _one_sentence(work: Path) -> Iterator[None]:
    """Turn what frameworks raise when memory or the disk is full into errors that say what to do."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to resume", err=True)
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error).lower()
        if "out of memory" in text:
            raise BackendError(
                "the device is out of memory; give a smaller --micro-batch, or a smaller --max-length."
            ) from error
        if isinstance(error, OSError) or shutil.disk_usage(work).free < SMALL_DISK or "no space" in text:
            raise OutputError(
                f"{work} cannot be written ({shorten(str(error))}); make room and run the same command again."
            ) from error
        raise


def _settings(options: dict[str, Any]) -> Settings:
    from vt_core.enrich.training import Settings

    names = [field.name for field in fields(Settings) if field.name != "alpha"]
    settings = Settings(**{name: options[name] for name in names})
    return replace(settings, alpha=options["alpha"] or settings.rank)


def _backend(name: str) -> FinetuneBackend:
    from vt_core.decode.backend import BACKENDS, backend

    backend(name)
    module: Any = importlib.import_module(f"{BACKENDS[name][0]}.finetune")
    return cast("FinetuneBackend", module)


def _plan(
    model: PlainModel, options: dict[str, Any], settings: Settings, rows: RowFormat, work: Path
) -> tuple[TrainingPlan, dict[str, Any]]:
    """The training run, and what the report says about its examples."""
    from vt_core.enrich.training import TrainingPlan, choose, rare_ids, read_examples, split
    from vt_core.vocab.tokenizer import Tokenizer

    tokenizer = Tokenizer(model.path)
    raw = options["raw"] or tokenizer.chat_template is None
    read = partial(
        read_examples,
        tokenizer=tokenizer,
        row_format=rows,
        raw=raw,
        system=options["system"],
        max_length=options["max_length"],
    )
    found = read(options["data"])
    too_long = found.too_long
    train = choose(found.kept, options["limit"], options["seed"])
    if options["eval_data"]:
        others = read(options["eval_data"])
        evaluation, too_long = others.kept, too_long + others.too_long
    else:
        share = 0.05 if options["eval_share"] is None else options["eval_share"]
        train, evaluation = split(train, share, options["seed"])
    new_ids = tuple(tokenizer.merges)
    _check_rows_rate(options, model.name, new_ids)
    if new_ids and not settings.full and settings.rows_learning_rate is None:
        settings = settings.for_rows(model.rows_scale(new_ids))
    plan = TrainingPlan(model.path, model.tied, new_ids, train, evaluation, settings, work)
    prompts = {"template": rows.prompt, "system": options["system"], "raw": raw}
    rare = len(rare_ids(train, new_ids))
    return plan, {"too_long": too_long, "rare_merged_tokens": rare, **prompts}


def _prepare(plan: TrainingPlan, model: PlainModel, options: dict[str, Any]) -> None:
    """Make the directory of checkpoints. Those of another run are removed."""
    import hashlib
    import json

    from vt_core.files.json_files import read_text, write_atomically

    ignored = ("out", "as_json", "data", "eval_data", "model", "revision")
    asked = {name: str(value) for name, value in options.items() if name not in ignored}
    content = [model.fingerprint(), asked, [example.ids for example in (*plan.train, *plan.evaluation)]]
    signature = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    work = plan.work
    note = work / "run"
    if note.is_file() and read_text(note, "checkpoint", OptionError) == signature:
        if any(work.glob("checkpoint*")):
            click.echo(f"resuming from {work}", err=True)
        return
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise OptionError(f"{work} cannot be made ({error.strerror}); choose another --out.") from error
    write_atomically(note, signature)


def _write_more(directory: Path, trained: Trained, report: dict[str, Any]) -> None:
    """Write the adapter, the report and, where matplotlib is installed, the plot of the loss."""
    from vt_core.enrich.report import plot_loss
    from vt_core.files.json_files import write_json
    from vt_core.profile.plot import figure_class

    if trained.adapter is not None:
        shutil.copytree(trained.adapter, directory / "adapter")
    write_json(directory / "training.json", report)
    try:
        figure_class()
    except OptionError:
        return
    plot_loss(trained.curve, directory / "training.png")


def _training_report(plan: TrainingPlan, trained: Trained, seconds: float) -> dict[str, Any]:
    return {
        "examples": len(plan.train),
        "evaluation_examples": len(plan.evaluation),
        "merged_tokens": len(plan.new_ids),
        "output_tokens": sum(len(example.ids) - example.prompt for example in plan.train),
        "settings": asdict(plan.settings),
        "steps": trained.steps,
        "stopped_early": trained.stopped_early,
        "seconds": round(seconds, 1),
        "curve": [asdict(point) for point in trained.curve],
    }


def _rare_text(merged: int, rare: int) -> str:
    from vt_core.enrich.training import RARE

    return (
        f"{rare:,} of {merged:,} merged tokens are in fewer than {RARE} examples, too few to learn them: "
        "train on more examples, or give enrich fewer --rows"
    )


def _point_text(point: Any) -> str:
    kind = "evaluation loss" if point.evaluation else "loss"
    return f"update {point.step}: {kind} {point.loss:.4f}"


def _report_text(report: dict[str, Any]) -> str:
    evaluated = [point["loss"] for point in report["curve"] if point["evaluation"]]
    best = f"; smallest evaluation loss {min(evaluated):.4f}" if evaluated else ""
    stopped = ", stopped early" if report["stopped_early"] else ""
    left_out = f", {report['too_long']:,} too long" if report["too_long"] else ""
    return (
        f"{report['out']}: {report['examples']:,} examples and {report['evaluation_examples']:,} to evaluate"
        f"{left_out}; {report['steps']:,} updates in {report['seconds']:.0f} s{stopped}{best}"
    )
