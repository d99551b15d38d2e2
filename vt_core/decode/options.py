"""The options of loading and of a request, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vt_core.decode import arguments
from vt_core.decode.backend import BACKENDS, check_backend, default_backend
from vt_core.decode.constraints.grammar import Grammar, grammar_option
from vt_core.decode.drafting import MAX_DRAFT
from vt_core.decode.sampling import SamplerSettings
from vt_core.decode.stopping import StopMatcher
from vt_core.errors import OptionError
from vt_core.files.dtypes import FLOATS
from vt_core.files.integers import MODES
from vt_core.files.tables import STORES
from vt_core.vocab.collection import check_task
from vt_core.vocab.heads import HEADS
from vt_core.vocab.task import TaskVocabulary


@dataclass(frozen=True)
class LoadOptions:
    """The checked options of :func:`vt_core.load`, which describes them."""

    path: str | Path | None
    backend: str  #: name of the backend
    tasks: tuple[str | Path | TaskVocabulary, ...]  #: task vocabularies, as files, names or objects
    head: str
    store: str
    device: str | None
    dtype: str | None
    tile_bytes: int | None
    slots: int
    cache_bytes: int | None
    draft_file: str | Path | None
    quantize: str | None
    adapter: str | Path | None
    revision: str | None
    learn: bool
    compile: bool
    progress: bool


def load_options(
    *,
    path: object,
    backend: object,
    task: object,
    head: object,
    store: object,
    device: object,
    dtype: object,
    tile_bytes: object,
    slots: object,
    cache_bytes: object,
    draft_file: object,
    quantize: object,
    adapter: object,
    revision: object,
    learn: object,
    compile: object,
    progress: object,
) -> LoadOptions:
    """Check the arguments of :func:`vt_core.load`, task vocabularies included. Nothing is imported or
    downloaded.

    Raises:
        OptionError: an argument has the wrong type or is out of range.
        VocabularyError: a task vocabulary does not exist, or its file is damaged.
        BackendError: the backend is unknown or not installed.
    """
    options = LoadOptions(
        path=None if path is None else arguments.path("path", path),
        adapter=None if adapter is None else arguments.path("adapter", adapter),
        draft_file=None if draft_file is None else arguments.path("draft_file", draft_file),
        device=None if device is None else arguments.text("device", device),
        revision=None if revision is None else arguments.text("revision", revision),
        learn=arguments.flag("learn", learn),
        compile=arguments.flag("compile", compile),
        progress=arguments.flag("progress", progress),
        head=arguments.choice("head", head, HEADS),
        store=arguments.choice("store", store, STORES),
        dtype=None if dtype is None else arguments.choice("float type", dtype, FLOATS),
        quantize=None if quantize is None else arguments.choice("quantization", quantize, MODES),
        tile_bytes=None if tile_bytes is None else arguments.whole("tile_bytes", tile_bytes),
        slots=arguments.whole("slots", slots),
        cache_bytes=None if cache_bytes is None else arguments.whole("cache_bytes", cache_bytes),
        backend=default_backend() if backend is None else arguments.choice("backend", backend, BACKENDS),
        tasks=_tasks(task),
    )
    if options.tile_bytes is not None and options.tile_bytes < 1:
        raise OptionError(f"tile_bytes is {options.tile_bytes}, but it must be at least 1, or None")
    if options.slots < 1:
        raise OptionError(f"slots is {options.slots}, but at least 1 request must run at once")
    if options.cache_bytes is not None and options.cache_bytes < 0:
        raise OptionError(f"cache_bytes is {options.cache_bytes}, but it must be 0 or more, or None")
    check_backend(options.backend)
    return options


def _tasks(given: object) -> tuple[str | Path | TaskVocabulary, ...]:
    items = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else [given]
    return tuple(item if isinstance(item, TaskVocabulary) else _task_file(item) for item in items)


def _task_file(item: object) -> str | Path:
    path = arguments.path("a task vocabulary", item)
    check_task(path)
    return path


#: When to draft: where a task has an n-gram table or the answer follows a grammar; never; always. With a
#: grammar and always, from the request's own text too.
DRAFT = ("auto", "none", "ngram")

#: How the body runs for several requests: once for all, or once for each.
BATCH = ("together", "alone")


@dataclass(frozen=True)
class RequestOptions:
    """What :meth:`vt_core.model.Model.stream` was asked for, apart from the prompt."""

    max_tokens: int  #: most tokens to generate
    stop: tuple[str, ...]  #: texts that end the answer
    system: str | None  #: system message
    raw: bool  #: whether to skip the chat template
    approximate: bool  #: whether to skip verification
    dynamic: bool  #: whether the prompt's tokens join the head
    template_arguments: dict[str, Any]  #: arguments of the chat template
    sampling: SamplerSettings  #: how tokens are chosen
    draft: str = "auto"  #: one of :data:`DRAFT`
    draft_tokens: int | None = None  #: tokens to draft for each read; None learns how many pay
    batch: str = "together"  #: one of :data:`BATCH`
    grammar: Grammar | None = None  #: what the answer follows


def request_options(
    *,
    max_tokens: int = 256,
    stop: str | Sequence[str] = (),
    system: str | None = None,
    raw: bool = False,
    approximate: bool = False,
    dynamic: bool = True,
    template_arguments: Mapping[str, Any] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    draft: str = "auto",
    draft_tokens: int | None = None,
    batch: str = "together",
    json_schema: object = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> RequestOptions:
    """Check the options of a request; numpy's numbers become Python's. :class:`~vt_core.model.Model` says
    what each means.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """
    limit = arguments.whole("max_tokens", max_tokens)
    if limit < 1:
        raise OptionError(f"max_tokens is {limit}, but it must be at least 1")
    stops = arguments.texts("stop", stop)
    StopMatcher(stops)  # refuses empty ones
    followed = grammar_option(json_schema, regex, grammar)
    if followed is not None and stops:
        raise OptionError(f"stop does not go with {followed.option}, which says where the answer ends")
    return RequestOptions(
        max_tokens=limit,
        stop=stops,
        system=None if system is None else arguments.text("system", system),
        raw=arguments.flag("raw", raw),
        approximate=arguments.flag("approximate", approximate),
        dynamic=arguments.flag("dynamic", dynamic),
        template_arguments=arguments.mapping("template_arguments", template_arguments),
        sampling=SamplerSettings(
            temperature=arguments.number("temperature", temperature),
            top_k=arguments.whole("top_k", top_k),
            top_p=arguments.number("top_p", top_p),
            min_p=arguments.number("min_p", min_p),
            seed=arguments.whole("seed", seed),
            repetition_penalty=arguments.number("repetition_penalty", repetition_penalty),
            presence_penalty=arguments.number("presence_penalty", presence_penalty),
            frequency_penalty=arguments.number("frequency_penalty", frequency_penalty),
            logit_bias=_logit_bias(logit_bias),
        ),
        draft=arguments.choice("draft", draft, DRAFT),
        draft_tokens=_draft_tokens(draft_tokens, draft),
        batch=arguments.choice("batch", batch, BATCH),
        grammar=followed,
    )


def _draft_tokens(given: int | None, draft: str) -> int | None:
    if given is None:
        return None
    tokens = arguments.whole("draft_tokens", given)
    if not 1 <= tokens <= MAX_DRAFT:
        raise OptionError(f"draft_tokens is {tokens}, but it must be between 1 and {MAX_DRAFT}")
    if draft == "none":
        raise OptionError("draft_tokens says how many tokens to draft, but draft is none")
    return tokens


def _logit_bias(given: Mapping[int, float] | None) -> dict[int, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionError(f"logit_bias is {given!r}, but it must be a dictionary of token ids and numbers")
    return {
        arguments.whole("a token id of logit_bias", token): arguments.number(
            f"logit_bias of token {token}", value
        )
        for token, value in given.items()
    }
