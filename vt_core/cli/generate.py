"""``generate``: a prompt in, a streamed answer out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli import many
from vt_core.cli.loading import loading_arguments, loading_options, template_arguments, template_options
from vt_core.cli.options import (
    FILE,
    approximate_option,
    data_option,
    draft_option,
    draft_tokens_option,
    grammar_options,
    input_field_option,
    json_option,
    max_tokens_option,
    raw_option,
    sampling_options,
    stop_option,
    system_option,
    template_option,
    verbose_option,
)
from vt_core.cli.streams import log_shown, write_json, write_text
from vt_core.decode.options import BATCH
from vt_core.errors import PromptError
from vt_core.files.json_files import decode_text, read_text

if TYPE_CHECKING:
    from vt_core import Generation, Model, Stats


@click.command()
@click.argument("prompt", required=False)
@click.option("--prompt-file", type=FILE, metavar="FILE", help="Read the prompt from a file.")
@data_option("Rows with prompts to answer, in place of PROMPT")
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="File for the answers to --data, a line of JSON for each row; a run that was interrupted goes on. "
    "Default: standard output.",
)
@template_option
@input_field_option
@click.option(
    "--batch",
    "slots",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Prompts of --data to answer at once.",
)
@click.option(
    "--batch-mode",
    "batch",
    type=click.Choice(BATCH),
    default="together",
    show_default=True,
    help="Run the model's body once for all prompts, or alone for each: then every answer is, to the last "
    "bit, that of a run alone.",
)
@loading_options
@max_tokens_option()
@stop_option
@system_option
@template_options
@raw_option
@sampling_options
@approximate_option
@draft_option
@draft_tokens_option
@grammar_options
@json_option
@verbose_option
@click.pass_obj
def generate(
    backend: str,
    prompt: str | None,
    prompt_file: Path | None,
    data: tuple[Path, ...],
    out: Path | None,
    template: str | None,
    input_field: str | None,
    slots: int,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Generate an answer to PROMPT (or to standard input) and stream it; with --data, answer many prompts.

    \b
    Examples:
      vt-torch generate "Why is the sky blue?"
      vt-torch generate --model Qwen/Qwen2.5-Coder-0.5B-Instruct "Reverse a list in Python."
      echo "Translate to Italian: good morning" | vt-torch generate --max-tokens 40
      vt-torch generate --task math.vt.json --json "What is 12 * 13?"
      vt-torch generate --data rows.jsonl --template "Translate to French: {input}" --out answers.jsonl
      vt-torch generate --regex "(yes|no)" "Is the sky blue?"
    """
    if options["raw"] and (options["chat_template_kwargs"] or options["tools"]):
        raise click.UsageError("--chat-template-kwargs and --tools need the chat template; leave --raw out")
    options["template_arguments"] = template_arguments(options)
    loading = loading_arguments(options)
    text = None
    if not data:
        for name, value in (("--out", out), ("--template", template), ("--input-field", input_field)):
            if value is not None:
                raise click.UsageError(f"{name} goes with --data")
        text = _read_prompt(prompt, prompt_file)
    elif prompt is not None or prompt_file is not None or as_json:
        raise click.UsageError("--data takes the place of PROMPT, --prompt-file and --json")
    from vt_core import load
    from vt_core.decode.options import request_options

    request_options(**options)  # refuses wrong ones before the model is loaded

    def load_model() -> Model:
        with log_shown(verbose):
            return load(backend=backend, progress=sys.stderr.isatty() or verbose, slots=slots, **loading)

    if text is None:
        many.run(load_model, many.Prompts(data, input_field, template), out, options)
        return
    model = load_model()
    if verbose and model.tokenizer.chat_template is None and not options["raw"]:
        click.echo("the model has no chat template: the prompt is used as it is", err=True)
    for chunk in model.stream(text, **options):
        if not as_json:
            write_text(chunk.text)
        result = chunk.result
    assert result is not None, "a stream ends with its result"
    if as_json:
        write_json(result.to_dict())
    else:
        write_text("\n")
    if verbose:
        click.echo(summary(result), err=True)


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give PROMPT or --prompt-file, not both")
    if prompt_file is not None:
        text = read_text(prompt_file, "prompt", PromptError)
    elif prompt is not None and prompt != "-":
        text = prompt
    else:
        if sys.stdin.isatty():
            raise click.UsageError("no prompt: give PROMPT, --prompt-file, or standard input")
        try:
            content = sys.stdin.buffer.read()
        except OSError as error:
            raise PromptError(f"standard input cannot be read ({error.strerror})") from error
        text = decode_text(content, "standard input", PromptError)
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    return text


def summary(result: Generation) -> str:
    """One line: tokens, speed, memory."""
    stats = result.stats

    def number(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value * scale:.1f} {unit}"

    return (
        f"{stats.prompt_tokens} + {stats.generated_tokens} tokens, {result.finish_reason}; "
        f"first after {number(stats.ttft_s, 'ms', 1e3)}, then {number(stats.tokens_per_s, 'tokens/s')}; "
        f"{_grammar(stats)}{_checks(stats)}{_drafts(stats)}"
        f"head {stats.head}: {stats.static_rows} + {stats.dynamic_rows} of {stats.vocab_rows} rows, "
        f"{number(stats.vocab_bytes_resident, 'MB', 1e-6)} "
        f"of {number(stats.vocab_bytes_full, 'MB', 1e-6)}; "
        f"peak memory {number(stats.peak_memory_bytes, 'MB', 1e-6)}"
    )


def _checks(stats: Stats) -> str:
    """Counts and times of verification; empty if there was none."""
    if not stats.verifications:
        return ""
    return (
        f"{stats.verifications} checks in {stats.verify_s:.2f} s: "
        f"{stats.rescued} rescued in {stats.rescue_s:.2f} s, "
        f"{stats.rolled_back} steps of {stats.rolled_back_s:.2f} s rolled back; "
    )


def _grammar(stats: Stats) -> str:
    """What the positions of a grammar needed; empty if there was none."""
    if not stats.certain + stats.gathered + stats.scanned:
        return ""
    return (
        f"grammar: {stats.certain} positions certain, {stats.gathered} gathered, {stats.scanned} scanned, "
        f"{stats.forced} forced, masks in {stats.grammar_s:.2f} s; "
    )


def _drafts(stats: Stats) -> str:
    """Counts and time of drafting; empty if nothing was drafted."""
    if not stats.drafted:
        return ""
    return (
        f"{stats.drafted} drafted in {stats.draft_s:.2f} s, {stats.accepted} right, "
        f"{stats.tokens_per_read:.1f} tokens a read; "
    )
