"""``serve``: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vt_core.cli.loading import loading_arguments, other_loading_options
from vt_core.cli.options import approximate_option, combined, draft_option, max_tokens_option, shaping_options
from vt_core.errors import OptionError

if TYPE_CHECKING:
    from vt_core.model import Model
    from vt_core.serve.registry import Served, TaskSource

#: Name of the model that is served where none is given.
DEFAULT_NAME = "SmolLM2-135M-Instruct"

_seconds = click.FloatRange(min=0, min_open=True)

_server_options = combined(
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: any."
    ),
    click.option(
        "--batch",
        type=click.IntRange(1, 256),
        default=8,
        show_default=True,
        help="Requests that run at once.",
    ),
    click.option(
        "--queue", type=click.IntRange(0), default=64, show_default=True, help="Requests that may wait."
    ),
    click.option(
        "--cache-mb",
        type=click.FloatRange(min=0),
        default=1024,
        show_default=True,
        help="Megabytes of prompts that are kept for later requests.",
    ),
    click.option(
        "--api-key",
        envvar="VT_API_KEY",
        metavar="KEY",
        help="Key that clients must send. Others on this machine may see options: prefer the environment's "
        "VT_API_KEY.",
    ),
    click.option(
        "--timeout", type=_seconds, default=600, show_default=True, help="Most seconds of a request."
    ),
    click.option(
        "--drain",
        type=_seconds,
        default=30,
        show_default=True,
        help="Seconds that running requests have to end after SIGTERM.",
    ),
    click.option(
        "--max-body-mb", type=_seconds, default=4, show_default=True, help="Most megabytes of a request."
    ),
    click.option("--max-prompt", type=click.IntRange(1), metavar="TOKENS", help="Most tokens of a prompt."),
    click.option("--lazy", is_flag=True, help="Load a model when it is first used."),
    click.option(
        "--unload-after", type=_seconds, metavar="SECONDS", help="Unload models that are unused for so long."
    ),
    click.option(
        "--allow-origin",
        multiple=True,
        metavar="ORIGIN",
        help="Origin of web pages that may use the server, such as https://example.com, or *; repeatable.",
    ),
    click.option(
        "--allow-host",
        multiple=True,
        metavar="NAME",
        help="Another name of this server, where a proxy passes it on; repeatable.",
    ),
)


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]PATH|ID",
    help="Model as in generate, and its name for clients; repeatable. Default: SmolLM2-135M-Instruct.",
)
@other_loading_options
@_server_options
@max_tokens_option(1024, text="Most tokens of a chat answer whose request does not say.")
@shaping_options
@approximate_option
@draft_option
@click.pass_obj
def serve(backend: str, models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP, for OpenAI's clients.

    Sampling options hold for requests that do not say otherwise. A task of --task is chosen by the model name
    NAME:TASK; without it the head holds the tokens of all tasks.

    \b
    Examples:
      vt-torch serve
      vt-torch serve --model small=Qwen/Qwen2.5-0.5B-Instruct --model coder=./coder.gguf --lazy
      vt-torch serve --task math --task sql.vt.json --batch 16
      curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'
    """
    try:
        from vt_core.serve.log import start_log
        from vt_core.serve.registry import named_tasks
        from vt_core.serve.server import serve as run
        from vt_core.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise OptionError(f"serve needs the package {error.name}: pip install 'vt[serve]'") from error
    from vt_core.decode.options import request_options

    settings = Settings(
        host=options.pop("host"),
        port=options.pop("port"),
        batch=options.pop("batch"),
        queue=options.pop("queue"),
        max_tokens=options.pop("max_tokens"),
        max_prompt=options.pop("max_prompt"),
        max_body=int(options.pop("max_body_mb") * 1e6),
        timeout=options.pop("timeout"),
        drain=options.pop("drain"),
        cache_bytes=int(options.pop("cache_mb") * 1e6),
        idle=options.pop("unload_after"),
        lazy=options.pop("lazy"),
        api_key=options.pop("api_key") or None,
        origins=options.pop("allow_origin"),
        hosts=options.pop("allow_host"),
        defaults=(defaults := _defaults(options)),
    )
    request_options(**defaults)  # refuses wrong ones before a model is loaded
    start_log()
    files = options.pop("task")
    tasks = named_tasks(files)
    given = models or ("",)
    if len(given) > 1 and (options["revision"] or options["adapter"]):
        raise click.UsageError("--revision and --adapter go with one model; give one --model only")
    served = [_served(backend, model, tasks, files, settings.batch, options) for model in given]
    # uvicorn raises the signal again when all is done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(served, settings, lambda server, url: None)


def _defaults(options: dict[str, Any]) -> dict[str, Any]:
    names = [parameter for parameter in options if parameter in _DEFAULTS]
    return {name: options.pop(name) for name in names}


_DEFAULTS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "approximate", "draft",
)  # fmt: skip


def _served(
    backend: str,
    given: str,
    tasks: Mapping[str, TaskSource],
    files: Sequence[Path],
    slots: int,
    options: dict[str, Any],
) -> Served:
    """A model as ``[NAME=]PATH|ID`` says."""
    from vt_core.serve.registry import Served

    name, equals, source = given.partition("=")
    if not equals or Path(given).exists():
        name, source = "", given
    if equals and not (name and source) and not Path(given).exists():
        raise click.BadParameter(f"{given!r} is neither PATH nor NAME=PATH", param_hint="'--model'")
    loading = loading_arguments({**options, "model": source or None, "task": files})

    def load() -> Model:
        import vt_core

        return vt_core.load(backend=backend, slots=slots, **loading)

    return Served(name or _name_of(source), load, tasks)


def _name_of(source: str) -> str:
    if not source:
        return DEFAULT_NAME
    path = Path(source)
    if not path.exists():
        return source  # a hub id
    return path.resolve().name.removesuffix(".gguf")
