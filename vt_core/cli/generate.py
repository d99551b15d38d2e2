"""``generate``: a prompt in, a streamed answer out."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.options import (
    FILE,
    device_option,
    dtype_option,
    json_option,
    max_tokens_option,
    model_option,
    quantize_option,
    raw_option,
    revision_option,
    stop_option,
    system_option,
    task_option,
)
from vt_core.cli.streams import log_shown, write_json, write_text
from vt_core.errors import OptionError, PromptError, shorten
from vt_core.files.json_files import decode_text, parse_object, read_json, read_text
from vt_core.files.tables import STORES
from vt_core.vocab.heads import HEADS

if TYPE_CHECKING:
    from vt_core import Generation, Stats


@click.command()
@click.argument("prompt", required=False)
@click.option("--prompt-file", type=FILE, metavar="FILE", help="Read the prompt from a file.")
@model_option()
@revision_option
@click.option(
    "--adapter", type=FILE, metavar="DIR", help="LoRA adapter of the model, in the format of PEFT or mlx-lm."
)
@task_option
@max_tokens_option()
@stop_option
@system_option
@click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    help="Arguments of the chat template, such as '{\"enable_thinking\": false}'.",
)
@click.option("--tools", type=FILE, metavar="FILE", help="JSON list of the tools that the model may call.")
@raw_option
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p", default=1.0, show_default=True, help="Keep the most likely tokens up to this probability."
)
@click.option("--top-k", default=0, show_default=True, help="Keep the K most likely tokens; 0 keeps all.")
@click.option(
    "--min-p", default=0.0, show_default=True, help="Keep tokens at least this likely, relative to the best."
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option(
    "--repetition-penalty", default=1.0, show_default=True, help="Make tokens that occur less likely; 1: off."
)
@click.option(
    "--presence-penalty",
    default=0.0,
    show_default=True,
    help="Subtract this once from the logits of tokens that occur; 0: off.",
)
@click.option(
    "--frequency-penalty",
    default=0.0,
    show_default=True,
    help="Subtract this from a token's logit each time it occurs; 0: off.",
)
@click.option(
    "--head",
    type=click.Choice(list(HEADS)),
    default="prealloc",
    show_default=True,
    help="How the head is held; full is the original one.",
)
@click.option(
    "--approximate",
    is_flag=True,
    help="Skip verification, as the published method does. Otherwise the text is the full head's.",
)
@click.option(
    "--store",
    type=click.Choice(STORES),
    default="lmdb",
    show_default=True,
    help="Read vocabulary rows from disk, or keep the tables in host memory.",
)
@click.option(
    "--tile-mb",
    type=click.FloatRange(min=0, min_open=True),
    help="Megabytes of the full head to read at a time. Default: what is fastest on the device.",
)
@device_option
@dtype_option()
@quantize_option
@click.option("--learn", is_flag=True, help="Save the tokens that verification put in, for the next run.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Report on stderr what was done.")
@click.pass_obj
def generate(
    backend: str, prompt: str | None, prompt_file: Path | None, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Generate an answer to PROMPT (or to standard input) and stream it.

    \b
    Examples:
      vt-torch generate "Why is the sky blue?"
      vt-torch generate --model Qwen/Qwen2.5-Coder-0.5B-Instruct "Reverse a list in Python."
      echo "Translate to Italian: good morning" | vt-torch generate --max-tokens 40
      vt-torch generate --task math.vt.json --json "What is 12 * 13?"
    """
    if options["raw"] and (options["chat_template_kwargs"] or options["tools"]):
        raise click.UsageError("--chat-template-kwargs and --tools need the chat template; leave --raw out")
    options["template_arguments"] = _template_arguments(
        options.pop("chat_template_kwargs"), options.pop("tools")
    )
    tile = options.pop("tile_mb")
    if tile is not None and not math.isfinite(tile):
        raise click.BadParameter(f"{tile} is not a size.", param_hint="'--tile-mb'")
    text = _read_prompt(prompt, prompt_file)
    from vt_core import load
    from vt_core.decode.options import request_options

    loading = {
        name: options.pop(name)
        for name in ("revision", "adapter", "task", "head", "store", "device", "dtype", "quantize", "learn")
    }
    loading["tile_bytes"] = None if tile is None else max(1, int(tile * 1e6))
    path = options.pop("model")
    request_options(**options)  # refuses wrong ones before the model is loaded
    with log_shown(verbose):
        model = load(path, backend=backend, progress=sys.stderr.isatty() or verbose, **loading)
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
        click.echo(_summary(result), err=True)


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


def _template_arguments(given: str | None, tools: Path | None) -> dict[str, Any]:
    """Arguments of the chat template from the two options that set them."""
    name = "--chat-template-kwargs"
    arguments = {} if given is None else parse_object(given, name, "set of arguments", OptionError)
    if tools is not None:
        listed = read_json(tools, "list of tools", OptionError)
        if not isinstance(listed, list):
            raise OptionError(f"{tools}: not a list of tools; it holds {shorten(listed, 40)}")
        arguments["tools"] = listed
    return arguments


def _summary(result: Generation) -> str:
    """One line: tokens, speed, memory."""
    stats = result.stats

    def number(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value * scale:.1f} {unit}"

    return (
        f"{stats.prompt_tokens} + {stats.generated_tokens} tokens, {result.finish_reason}; "
        f"first after {number(stats.ttft_s, 'ms', 1e3)}, then {number(stats.tokens_per_s, 'tokens/s')}; "
        f"{_checks(stats)}"
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
