"""Options that several commands share, each with one meaning. Choices come from the code that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vt_core.decode.drafting import MAX_DRAFT
from vt_core.decode.options import DRAFT
from vt_core.errors import DataError
from vt_core.files.dtypes import FLOATS
from vt_core.files.integers import MODES
from vt_core.files.json_files import read_text

if TYPE_CHECKING:
    from vt_core.profile.row_format import RowFormat

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]

#: Files and folders. Shells complete their names; names that are not UTF-8 work too.
FILE = click.Path(path_type=Path)

revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")

task_option = click.option(
    "--task",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Task vocabulary, or the name of one in the collection, such as math; may be repeated, the "
    "vocabularies are combined.",
)

stop_option = click.option(
    "--stop", multiple=True, metavar="TEXT", help="Text that ends an answer; repeatable."
)

system_option = click.option("--system", metavar="TEXT", help="System message.")

raw_option = click.option(
    "--raw", is_flag=True, help="Give prompts to the model as they are, without the chat template."
)

device_option = click.option(
    "--device", help="Device of the backend, such as cpu or cuda. Default: the best."
)

quantize_option = click.option(
    "--quantize",
    type=click.Choice(MODES),
    help="Run a quantized copy of the model, which is made once, in the user's cache: linear layers of 8 or "
    "4 bits, a head of 8 (PyTorch). Exact then means the text of that head.",
)

compile_option = click.option(
    "--compile",
    is_flag=True,
    help="Compile the steps of one token with torch.compile (PyTorch, float weights). Rounds "
    "differently; the first run takes minutes longer, later ones some seconds.",
)

input_field_option = click.option(
    "--input-field", metavar="NAME", help="Field of the input; dots lead into nested fields. Default: input."
)

output_field_option = click.option(
    "--output-field", metavar="NAME", help="Field of the expected output. Default: output."
)

template_option = click.option(
    "--template", metavar="TEXT", help="Prompt around {input}. In profile, its words count as input."
)

approximate_option = click.option(
    "--approximate",
    is_flag=True,
    help="Skip verification, as the published method does. Otherwise the text is the full head's.",
)

draft_file_option = click.option(
    "--draft-file",
    type=FILE,
    metavar="FILE",
    help="N-gram table to draft from. Default: NAME.ngrams next to each task file, where there is one.",
)
draft_option = click.option(
    "--draft",
    type=click.Choice(DRAFT),
    default="auto",
    show_default=True,
    help="Draft tokens, which saves time and does not change the text: where the task has an n-gram table "
    "or the answer follows a grammar (auto), never, or from the text itself too (ngram).",
)


draft_tokens_option = click.option(
    "--draft-tokens",
    type=click.IntRange(1, MAX_DRAFT),
    metavar="N",
    help="Draft as many tokens for each read as are proposed, at most N. Default: as many as save the most "
    "time, which is learned.",
)


def _given_grammar(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The text of a file, or of a schema on the command line."""
    if value is None or (parameter.name == "json_schema" and value.lstrip().startswith("{")):
        return value
    kind = "JSON schema" if parameter.name == "json_schema" else "grammar"
    return read_text(value, kind, DataError)


verbose_option = click.option("-v", "--verbose", is_flag=True, help="Report on stderr what was done.")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def combined(*options: Option) -> Option:
    """Several options as one decorator; help lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


grammar_options = combined(
    click.option(
        "--json-schema",
        metavar="JSON|FILE",
        callback=_given_grammar,
        help="The answer is JSON that this schema allows, on one line.",
    ),
    click.option("--regex", metavar="TEXT", help="The whole answer matches this regular expression."),
    click.option(
        "--grammar",
        metavar="FILE",
        callback=_given_grammar,
        help="The answer follows a grammar in llguidance's dialect of Lark.",
    ),
)

#: How the probabilities of tokens are shaped.
shaping_options = combined(
    click.option("--temperature", default=0.0, show_default=True, help="0 is greedy."),
    click.option(
        "--top-p",
        default=1.0,
        show_default=True,
        help="Keep the most likely tokens whose total probability reaches this.",
    ),
    click.option("--top-k", default=0, show_default=True, help="Keep the K most likely tokens; 0 keeps all."),
    click.option(
        "--min-p",
        default=0.0,
        show_default=True,
        help="Keep tokens at least this likely, relative to the best.",
    ),
    click.option(
        "--repetition-penalty",
        default=1.0,
        show_default=True,
        help="Make tokens that have already occurred less likely; 1: off.",
    ),
    click.option(
        "--presence-penalty",
        default=0.0,
        show_default=True,
        help="Subtract this once from the logits of tokens that have already occurred; 0: off.",
    ),
    click.option(
        "--frequency-penalty",
        default=0.0,
        show_default=True,
        help="Subtract this from a token's logit each time it occurs; 0: off.",
    ),
)

sampling_options = combined(
    shaping_options,
    click.option("--seed", default=0, show_default=True, help="The same seed gives the same text."),
)


def model_option(also: str = "") -> Option:
    """The model. `also`: what else the command takes in its place."""
    return click.option(
        "--model",
        type=click.Path(),
        metavar="PATH|ID",
        help=f"Model directory, Hugging Face directory or hub id, or GGUF file{also}. "
        "Default: SmolLM2-135M-Instruct.",
    )


def dtype_option(text: str = "Float type to run in. Default: what runs well on the device.") -> Option:
    """The float type, with what it is for."""
    return click.option("--dtype", type=click.Choice(FLOATS), help=text)


def data_option(text: str, required: bool = False, type: click.ParamType = FILE) -> Option:
    """Files with rows, with what the rows are for."""
    return click.option(
        "--data",
        multiple=True,
        required=required,
        type=type,
        metavar="FILE",
        help=f"{text}: .jsonl, .json, .csv, .tsv or .parquet, also .gz and .zst; repeatable.",
    )


def preset_option(required: bool = False) -> Option:
    """The kind of task."""
    from vt_core.profile.row_format import PRESETS

    return click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        required=required,
        help="Kind of task: sets the fields, the prompt around them, and what eval measures.",
    )


def max_tokens_option(default: int = 256, least: int = 1, text: str = "Most tokens to generate.") -> Option:
    """The length limit of an answer."""
    return click.option(
        "--max-tokens", type=click.IntRange(least), default=default, show_default=True, help=text
    )


def row_format(options: Mapping[str, Any]) -> RowFormat:
    """How rows of a corpus become texts: the preset, with the given parts replaced. Raises OptionError."""
    from vt_core.profile.row_format import make_row_format

    return make_row_format(*(options[name] for name in ("preset", "input_field", "output_field", "template")))
